//! Two servers: what a standby returns, and what a worker gets when the primary is killed, stopped, separated from its
//! standby, or demoted.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use api_keys_driver::schema::api_keys;
use api_keys_driver::{
    Advice, Error, EventPosition, KeyStatus, KeysDriver, NewKey, PoolConfig, Result, Timeouts, Transaction,
    migrate,
};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Text;
use throwaway_postgres::{Pair, PrivateServer, Replication};

use crate::every_method::{Input, METHODS};
use crate::support::{CallRow, KeyRow, PATIENCE, at, decimal, eventually, key, tenant};

/// A migrated pair with one key.
fn pair(replication: Replication) -> Pair {
    let pair = Pair::start_new(replication).unwrap();
    let mut conn = connect(&pair.primary);
    migrate(&mut conn).unwrap();
    KeyRow::default().insert(&mut conn);
    pair.wait_for_standby().unwrap();
    pair
}

fn connect(server: &PrivateServer) -> PgConnection {
    PgConnection::establish(&server.url()).unwrap()
}

fn revoke(conn: &mut PgConnection) -> Result<()> {
    Transaction::attempts(1).run(conn, |conn| {
        let mut keys = KeysDriver::new(conn);
        let key = keys.fetch_key_for_update(&tenant(), &key("key"))?.expect("the key");
        keys.update_key_revoked(key, at("2026-02-01T00:00:00Z"), None).map(drop)
    })
}

fn status(conn: &mut PgConnection) -> KeyStatus {
    KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap().status
}

fn short_timeouts() -> Timeouts {
    let short = Duration::from_millis(300);
    Timeouts { statement: 3 * short, lock: short, idle_in_transaction: short }
}

#[test]
fn a_standby_answers_every_read_as_the_primary_does_and_refuses_every_change() {
    let pair = pair(Replication::Synchronous);
    let mut primary = connect(&pair.primary);
    for n in 0..30 {
        let (id, created_at) = (format!("key {n}"), at("2025-01-01T00:00:00Z"));
        KeyRow { id: &id, created_at, is_synthetic: n % 3 == 0, ..KeyRow::default() }.insert(&mut primary);
        let call = format!("call {n}");
        CallRow { id: &call, cost_cents: Some(decimal("0.5")), ..CallRow::default() }.insert(&mut primary);
    }
    revoke(&mut primary).unwrap();
    pair.wait_for_standby().unwrap();

    let mut standby = connect(&pair.standby);
    let with = Input::default();
    for method in METHODS {
        let reads = ["fetch_", "count_"].iter().any(|verb| method.name.starts_with(verb))
            && method.name != "fetch_key_for_update";
        let on_standby = standby.transaction(|conn| (method.call)(conn, &with));
        if reads {
            let on_primary = primary.transaction(|conn| (method.call)(conn, &with));
            assert_eq!(on_standby.unwrap(), on_primary.unwrap(), "{}", method.name);
        } else if method.name == "lock_tenant" {
            // An advisory lock writes nothing, so a standby grants it.
            on_standby.unwrap();
        } else {
            assert!(matches!(on_standby, Err(Error::ReadOnly(_))), "{}: {on_standby:?}", method.name);
        }
    }
}

#[test]
fn a_follower_on_a_standby_skips_no_event() {
    let pair = pair(Replication::Asynchronous);
    let follow = |conn: &mut PgConnection, position: &mut Option<EventPosition>| {
        let mut ids = Vec::new();
        loop {
            let events = KeysDriver::new(conn).fetch_key_events_after(position.as_ref(), 5).unwrap();
            let Some(last) = events.last() else { return ids };
            *position = Some(last.position);
            ids.extend(events.into_iter().map(|event| String::from(event.key_id)));
        }
    };
    let write = |writer: usize| {
        let mut conn = connect(&pair.primary);
        for n in 0..25 {
            let id = format!("{writer}-{n}");
            conn.transaction(|conn| {
                KeyRow { id: &id, ..KeyRow::default() }.insert(conn);
                // Transactions end in another order than they began.
                sql_query(format!("SELECT pg_sleep(0.00{writer})")).execute(conn)
            })
            .unwrap();
        }
    };
    let (mut standby, mut position) = (connect(&pair.standby), None);
    let mut followed = Vec::new();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..4).map(|writer| scope.spawn(move || write(writer))).collect();
        while !writers.iter().all(thread::ScopedJoinHandle::is_finished) {
            followed.extend(follow(&mut standby, &mut position));
        }
    });
    pair.wait_for_standby().unwrap();
    eventually("the standby has every event", || {
        followed.extend(follow(&mut standby, &mut position));
        followed.len() >= 101
    });
    assert_eq!(followed, follow(&mut connect(&pair.primary), &mut None));
}

#[test]
fn a_standby_shows_a_change_once_it_has_replayed_the_position_of_its_commit() {
    let pair = pair(Replication::Synchronous);
    let (mut primary, mut standby) = (connect(&pair.primary), connect(&pair.standby));
    sql_query("SELECT pg_wal_replay_pause()").execute(&mut standby).unwrap();
    revoke(&mut primary).unwrap();
    let committed: String = diesel::select(diesel::dsl::sql::<Text>("pg_current_wal_insert_lsn()::text"))
        .get_result(&mut primary)
        .unwrap();
    let replayed = format!("SELECT WHERE pg_last_wal_replay_lsn() >= '{committed}'");
    assert_eq!(sql_query(&replayed).execute(&mut standby), Ok(0));
    assert_eq!(status(&mut standby), KeyStatus::Active, "what was not replayed is not seen");

    sql_query("SELECT pg_wal_replay_resume()").execute(&mut standby).unwrap();
    eventually("the commit is replayed", || sql_query(&replayed).execute(&mut standby) == Ok(1));
    assert_eq!(status(&mut standby), KeyStatus::Revoked);
}

#[test]
fn a_read_that_conflicts_with_replay_is_repeated() {
    let pair = pair(Replication::Asynchronous);
    let mut standby = impatient_standby(&pair);
    let (mut watcher, mut primary) = (connect(&pair.standby), connect(&pair.primary));
    let deleted = in_background(move || {
        let sleeping = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        eventually("a read sleeps", || sql_query(sleeping).execute(&mut watcher) == Ok(1));
        delete_and_vacuum(&mut primary);
    });
    let mut runs = 0;
    let count = Transaction::attempts(2).run(&mut standby, |conn| {
        runs += 1;
        if runs == 2 {
            // The next conflict would occur between two statements, and end the session.
            deleted.recv_timeout(PATIENCE).unwrap();
            pair.wait_for_standby().unwrap();
        }
        let count = KeysDriver::new(conn).count_keys(&tenant())?;
        if runs == 1 {
            conn.batch_execute("SELECT FROM api_keys, pg_sleep(30)")?;
        }
        Ok::<_, Error>(count)
    });
    assert_eq!((count.unwrap(), runs), (0, 2));
}

#[test]
fn an_idle_transaction_that_conflicts_with_replay_loses_its_connection() {
    let pair = pair(Replication::Asynchronous);
    let mut standby = impatient_standby(&pair);
    let lost = Transaction::attempts(5).run(&mut standby, |conn| {
        conn.batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")?;
        KeysDriver::new(conn).count_keys(&tenant())?;
        delete_and_vacuum(&mut connect(&pair.primary));
        pair.wait_for_standby().unwrap();
        // The server sends the code of a serialization failure, and ends the session.
        let lost = KeysDriver::new(conn).count_keys(&tenant());
        assert!(matches!(lost, Err(Error::ConnectionLost(_))), "{lost:?}");
        lost
    });
    assert!(matches!(lost, Err(Error::ConnectionLost(_))), "{lost:?}");
}

/// A session on a standby whose replay does not wait for reads.
fn impatient_standby(pair: &Pair) -> PgConnection {
    let mut standby = connect(&pair.standby);
    standby.batch_execute("ALTER SYSTEM SET max_standby_streaming_delay = 0").unwrap();
    standby.batch_execute("SELECT pg_reload_conf()").unwrap();
    standby
}

fn delete_and_vacuum(primary: &mut PgConnection) {
    diesel::delete(api_keys::table).execute(primary).unwrap();
    primary.batch_execute("VACUUM api_keys").unwrap();
}

#[test]
fn a_commit_waits_for_a_lost_synchronous_standby_whatever_the_timeouts_are() {
    let mut pair = pair(Replication::Synchronous);
    let pool = PoolConfig::new(pair.primary.url()).size(2).timeouts(short_timeouts()).build().unwrap();
    let mut watcher = connect(&pair.primary);
    pair.standby.kill().unwrap();

    let worker = pool.clone();
    let answered = in_background(move || {
        let mut conn = worker.get().unwrap();
        // The setting exists in PostgreSQL 17 and newer.
        let _ = conn.batch_execute("SET transaction_timeout = 1000");
        revoke(&mut conn)
    });
    wait_for_sync_rep(&mut watcher);
    answered.recv_timeout(Duration::from_secs(3)).expect_err("none of the timeouts ends it");

    // The commit holds its lock, and no other session sees the change.
    let waits = revoke(&mut pool.get().unwrap()).unwrap_err();
    assert!(matches!(waits, Error::LockTimeout(_)), "{waits:?}");
    assert_eq!(status(&mut pool.get().unwrap()), KeyStatus::Active);

    // As the documentation says: end the session, and do not cancel its wait.
    sql_query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        .execute(&mut watcher)
        .unwrap();
    let unknown = answered.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(unknown.advice(), Advice::CheckOutcome, "{unknown:?}");
    assert_eq!(status(&mut pool.get().unwrap()), KeyStatus::Revoked, "it is committed on this server");

    pair.primary.kill().unwrap();
    pair.standby.start().unwrap();
    pair.promote().unwrap();
    assert_eq!(status(&mut connect(&pair.primary)), KeyStatus::Active, "and nowhere else");
}

#[test]
fn a_cancelled_wait_for_the_standby_returns_ok_as_documented() {
    let mut pair = pair(Replication::Synchronous);
    let (mut worker, mut watcher) = (connect(&pair.primary), connect(&pair.primary));
    pair.standby.kill().unwrap();
    let answered = in_background(move || revoke(&mut worker));
    wait_for_sync_rep(&mut watcher);
    sql_query("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        .execute(&mut watcher)
        .unwrap();
    answered.recv_timeout(PATIENCE).unwrap().expect("the warning that the server sends reaches nobody");

    pair.primary.kill().unwrap();
    pair.standby.start().unwrap();
    pair.promote().unwrap();
    assert_eq!(status(&mut connect(&pair.primary)), KeyStatus::Active, "acknowledged, and lost");
}

#[test]
fn removing_a_standby_from_the_list_ends_the_wait_of_commits() {
    let mut pair = pair(Replication::Synchronous);
    let (mut worker, mut watcher) = (connect(&pair.primary), connect(&pair.primary));
    pair.standby.kill().unwrap();
    let answered = in_background(move || revoke(&mut worker));
    wait_for_sync_rep(&mut watcher);
    pair.set_replication(Replication::Asynchronous).unwrap();
    answered.recv_timeout(PATIENCE).unwrap().unwrap();
}

/// Runs work that may not return, so that a failing test does not wait for it.
fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || answer.send(work()));
    answered
}

fn wait_for_sync_rep(watcher: &mut PgConnection) {
    let waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("a commit waits for the standby", || sql_query(waiting).execute(watcher) == Ok(1));
}

#[test]
fn a_call_to_a_stopped_server_waits_until_the_server_is_killed() {
    let mut pair = pair(Replication::Synchronous);
    for url in [pair.url(), pair.tcp_url()] {
        let config = PoolConfig::new(url).size(1).timeouts(short_timeouts());
        let pool = config.tcp_user_timeout(Duration::from_secs(1)).build().unwrap();
        let mut conn = pool.get().unwrap();
        pair.primary.pause().unwrap();
        let answered = in_background(move || KeysDriver::new(&mut conn).count_keys(&tenant()));
        answered.recv_timeout(Duration::from_secs(3)).expect_err("nothing on the client's side ends it");

        // The supervisor of the servers kills the one that does not answer, and promotes the other.
        pair.primary.kill().unwrap();
        let lost = answered.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert_eq!(lost.advice(), Advice::Reconnect, "{lost:?}");
        pair.promote().unwrap();
        revoke(&mut pool.get().unwrap()).unwrap();
        pair.rejoin(Replication::Synchronous).unwrap();
    }
}
#[test]
fn a_pool_of_two_hosts_leaves_a_primary_that_became_read_only() {
    let mut pair = pair(Replication::Synchronous);
    let pool = PoolConfig::new(pair.url()).size(4).build().unwrap();
    drop(std::array::from_fn::<_, 4, _>(|_| pool.get().unwrap()));
    // The sessions on the old primary stay connected.
    let mut old_primary = connect(&pair.primary);
    old_primary.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
    old_primary.batch_execute("SELECT pg_reload_conf()").unwrap();
    pair.promote().unwrap();
    revoke(&mut connect(&pair.primary)).unwrap();

    for n in 0..25 {
        assert_eq!(status(&mut pool.get().unwrap()), KeyStatus::Revoked);
        let (id, mut conn) = (format!("new {n}"), pool.get().unwrap());
        KeyRow { id: &id, ..KeyRow::default() }.insert(&mut conn);
    }
    let keys = KeysDriver::new(&mut connect(&pair.primary)).count_keys(&tenant());
    assert_eq!(keys.unwrap(), 26);
}

#[test]
fn after_an_address_moved_an_old_connection_fails_once_and_is_dropped() {
    let mut pair = pair(Replication::Synchronous);
    let address = MovingAddress::of(&pair.primary);
    let pool = PoolConfig::new(format!("postgresql://postgres@127.0.0.1:{}/postgres", address.port))
        .size(4)
        .build()
        .unwrap();
    drop(std::array::from_fn::<_, 4, _>(|_| pool.get().unwrap()));
    let mut old_primary = connect(&pair.primary);
    old_primary.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
    old_primary.batch_execute("SELECT pg_reload_conf()").unwrap();
    pair.promote().unwrap();
    address.move_to(&pair.primary);

    let mut failed = 0;
    for n in 0..25 {
        let new = NewKey::new(
            tenant(),
            key(&format!("new {n}")),
            "Production",
            "sk-live-abcd",
            format!("hash {n}").into(),
            at("2026-01-01T00:00:00Z"),
        );
        if let Err(error) = KeysDriver::new(&mut pool.get().unwrap()).insert_key(&new) {
            assert_eq!(error.advice(), Advice::Reconnect, "{error:?}");
            failed += 1;
        }
    }
    assert!(failed <= 4, "{failed} of 25 inserts failed");
    let keys = KeysDriver::new(&mut connect(&pair.primary)).count_keys(&tenant());
    assert_eq!(keys.unwrap(), 26 - failed);
}

/// A TCP address that leads to one server and later to another. Existing connections are not moved.
struct MovingAddress {
    port: u16,
    target: Arc<AtomicU16>,
}

impl MovingAddress {
    fn of(server: &PrivateServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Arc::new(AtomicU16::new(server.port()));
        let leads_to = Arc::clone(&target);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(("127.0.0.1", leads_to.load(Relaxed))).unwrap();
                forward(client.try_clone().unwrap(), server.try_clone().unwrap());
                forward(server, client);
            }
        });
        Self { port, target }
    }

    fn move_to(&self, server: &PrivateServer) {
        self.target.store(server.port(), Relaxed);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}
