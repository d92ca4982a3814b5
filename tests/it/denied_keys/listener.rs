//! Waking up for a change of a key.

use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::{DeniedKeys, Error, KeyEventListener, Wake};
use diesel::connection::SimpleConnection;

use crate::support::{KeyRow, eventually, key, migrated_apart, tenant};

#[test]
fn a_frozen_key_is_denied_within_50_milliseconds_and_waiting_sends_nothing() {
    const ROUNDS: usize = 20;
    let (database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute("ALTER TABLE api_key_events ENABLE TRIGGER api_key_events_notify").unwrap();
    let mut follower = database.connect().unwrap();
    let mut listener = KeyEventListener::new(&mut follower).unwrap();
    let mut cache = DeniedKeys::seed(listener.connection()).unwrap();
    let mut delay = |denied: bool| {
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                thread::sleep(Duration::from_millis(30));
                conn.batch_execute(&format!("UPDATE api_keys SET is_frozen = {denied}")).unwrap();
                Instant::now()
            });
            while cache.contains(&tenant(), &key("key")) != denied {
                // Ten seconds, so that a poll would be noticed.
                listener.wait(Duration::from_secs(10)).unwrap();
                cache.catch_up(listener.connection()).unwrap();
            }
            writer.join().unwrap().elapsed()
        })
    };
    // The median of some rounds in a row is compared, because the machine may be busy.
    eventually("half of the delays are below 50 milliseconds", || {
        let mut delays: Vec<_> = (0..ROUNDS).map(|round| delay(round % 2 == 0)).collect();
        delays.sort();
        delays[ROUNDS / 2] < Duration::from_millis(50)
    });

    let waited = Instant::now();
    assert_eq!(listener.wait(Duration::from_millis(80)).unwrap(), Wake::TimedOut);
    assert!(waited.elapsed() >= Duration::from_millis(80));
    assert!(waited.elapsed() < Duration::from_secs(10));
}

#[test]
fn uses_and_rolled_back_changes_do_not_notify_and_a_lost_session_is_an_error() {
    let (database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute("ALTER TABLE api_key_events ENABLE TRIGGER api_key_events_notify").unwrap();
    let mut follower = database.connect().unwrap();
    let mut listener = KeyEventListener::new(&mut follower).unwrap();
    conn.batch_execute(
        "UPDATE api_keys SET total_requests = 1; BEGIN; UPDATE api_keys SET name = 'x'; ROLLBACK",
    )
    .unwrap();
    assert_eq!(listener.wait(Duration::from_millis(100)).unwrap(), Wake::TimedOut);
    conn.batch_execute("UPDATE api_keys SET name = 'x'; UPDATE api_keys SET name = 'y'").unwrap();
    assert_eq!(listener.wait(Duration::from_secs(10)).unwrap(), Wake::Notified);

    conn.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .unwrap();
    let mut lost = Ok(Wake::Notified);
    eventually("the loss is seen", || {
        lost = listener.wait(Duration::from_millis(10));
        lost.is_err()
    });
    assert!(matches!(lost, Err(Error::ConnectionLost(_))), "{lost:?}");
}

#[test]
fn a_session_that_does_not_listen_any_more_says_so() {
    let (database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute("ALTER TABLE api_key_events ENABLE TRIGGER api_key_events_notify").unwrap();
    let mut follower = database.connect().unwrap();
    let brief = Duration::from_millis(1);
    for silences in ["UNLISTEN *", "UNLISTEN api_key_events; LISTEN other"] {
        let mut listener = KeyEventListener::new(&mut follower).unwrap();
        assert_eq!(listener.wait(brief).unwrap(), Wake::TimedOut);
        listener.connection().batch_execute(silences).unwrap();
        assert_eq!(listener.wait(brief).unwrap(), Wake::NotListening, "{silences}");
        conn.batch_execute("UPDATE api_keys SET is_frozen = NOT is_frozen").unwrap();
        assert_eq!(listener.wait(brief).unwrap(), Wake::NotListening, "{silences}");
    }
    follower.batch_execute("BEGIN").unwrap();
    let mut listener = KeyEventListener::new(&mut follower).unwrap();
    listener.connection().batch_execute("ROLLBACK").unwrap();
    assert_eq!(listener.wait(brief).unwrap(), Wake::NotListening, "it never began to listen");
}
