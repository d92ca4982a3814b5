//! Many workers change one key at the same time: no change is lost, and only locks of the key wait.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use api_keys_driver::{Error, KeySnapshot, KeysDriver, Result, Transaction, TryLock};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::support::{KeyRow, at, key, migrated, tenant};

const WORKERS: i32 = 8;
const CYCLES: i32 = 50;

fn start() -> DateTime<Utc> {
    at("2026-06-01T12:00:00Z")
}

fn a_microsecond_later(key: &KeySnapshot) -> DateTime<Utc> {
    key.frozen_at.expect("a frozen key") + TimeDelta::microseconds(1)
}

fn stored(conn: &mut PgConnection) -> KeySnapshot {
    KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap()
}

fn wait_and_freeze(conn: &mut PgConnection) -> Result<()> {
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let locked = keys.fetch_key_for_update(&tenant(), &key("key"))?.expect("the key");
        let now = a_microsecond_later(&locked);
        keys.update_key_frozen(locked, now).map(drop)
    })
}

fn try_and_freeze(conn: &mut PgConnection) -> Result<()> {
    let mut done = false;
    while !done {
        done = Transaction::attempts(1).run(conn, |conn| {
            let mut keys = KeysDriver::new(conn);
            match keys.try_fetch_key_for_update(&tenant(), &key("key"))? {
                TryLock::Locked(locked) => {
                    let now = a_microsecond_later(&locked);
                    keys.update_key_frozen(locked, now)?;
                    Ok::<_, Error>(true)
                }
                TryLock::Busy => Ok(false),
                TryLock::NotFound => panic!("the key is there"),
            }
        })?;
    }
    Ok(())
}

/// Lets the workers run their cycles, and repeats `bystander` until they have finished.
fn contend(
    database: &Database,
    cycle: fn(&mut PgConnection) -> Result<()>,
    mut bystander: impl FnMut(&mut PgConnection) + Send,
) -> i32 {
    let mut rounds = 0;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let mut conn = database.connect().unwrap();
            while !done.load(Relaxed) {
                bystander(&mut conn);
                rounds += 1;
            }
        });
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut conn = database.connect().unwrap();
                    for _ in 0..CYCLES {
                        cycle(&mut conn).unwrap();
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Relaxed);
        beside.join().unwrap();
    });
    rounds
}

#[test]
fn no_cycle_of_concurrent_workers_is_lost_and_readers_never_wait() {
    for cycle in [wait_and_freeze, try_and_freeze] {
        let (database, mut conn) = migrated();
        KeyRow { is_frozen: true, frozen_at: Some(start()), ..KeyRow::default() }.insert(&mut conn);
        let mut last = start();
        let reads = contend(&database, cycle, |conn| {
            // Any wait for a lock would make this fail.
            conn.batch_execute("SET lock_timeout = '1ms'").unwrap();
            let seen = stored(conn).frozen_at.unwrap();
            assert!(seen >= last, "what was committed is not taken back");
            last = seen;
        });
        assert!(reads > 0);
        let expected = start() + TimeDelta::microseconds(i64::from(WORKERS * CYCLES));
        assert_eq!(stored(&mut conn).frozen_at, Some(expected));
    }
}

#[test]
fn an_insert_that_refers_to_a_locked_key_never_waits() {
    let (database, mut conn) = migrated();
    KeyRow { is_frozen: true, frozen_at: Some(start()), ..KeyRow::default() }.insert(&mut conn);
    conn.batch_execute(
        "CREATE TABLE worker_runs (id serial PRIMARY KEY, api_key_id varchar(36) REFERENCES api_keys (id))",
    )
    .unwrap();
    let inserted = contend(&database, wait_and_freeze, |conn| {
        conn.batch_execute("SET lock_timeout = '1s'; INSERT INTO worker_runs (api_key_id) VALUES ('key')")
            .unwrap();
    });
    let runs: i64 = diesel::dsl::sql::<diesel::sql_types::BigInt>("SELECT count(*) FROM worker_runs")
        .get_result(&mut conn)
        .unwrap();
    assert_eq!(runs, i64::from(inserted));
    let expected = start() + TimeDelta::microseconds(i64::from(WORKERS * CYCLES));
    assert_eq!(stored(&mut conn).frozen_at, Some(expected));
}
