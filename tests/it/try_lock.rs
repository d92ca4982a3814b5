//! Locking a key without waiting: the difference between a locked key and a missing one.

use std::thread;

use api_keys_driver::{Error, KeySnapshot, KeysDriver, Result, TryLock, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::{Database, PrivateServer};

use crate::support::{
    KeyRow, OTHER, at, key, migrated, other, plans_of, statements_of, tenant, wait_until_one_waits,
};

/// `TryLock` without its borrow.
#[derive(Debug, PartialEq)]
enum Answer {
    Locked(KeySnapshot),
    Busy,
    NotFound,
}

fn try_lock(conn: &mut PgConnection) -> Result<Answer> {
    // A lock that waits after all fails with a timeout.
    conn.batch_execute("SET lock_timeout = '10s'")?;
    conn.transaction(|conn| {
        Ok(match KeysDriver::new(conn).try_fetch_key_for_update(&tenant(), &key("key"))? {
            TryLock::Locked(key) => Answer::Locked(key.into_snapshot()),
            TryLock::Busy => Answer::Busy,
            TryLock::NotFound => Answer::NotFound,
        })
    })
}

fn stored(conn: &mut PgConnection) -> KeySnapshot {
    KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap()
}

#[test]
fn a_free_key_is_locked_and_read_as_it_is() {
    let (database, mut conn) = migrated();
    KeyRow { is_synthetic: true, status: "revoked", last_used_at: None, ..KeyRow::default() }
        .insert(&mut conn);
    let expected = stored(&mut conn);
    let mut second = database.connect().unwrap();
    conn.transaction::<_, Error, _>(|conn| {
        let mut keys = KeysDriver::new(conn);
        let TryLock::Locked(locked) = keys.try_fetch_key_for_update(&tenant(), &key("key"))? else {
            panic!("not locked")
        };
        assert_eq!(*locked, expected);
        assert_eq!(try_lock(&mut second)?, Answer::Busy);
        let frozen = keys.update_key_frozen(locked, at("2026-06-01T12:00:00Z"))?;
        assert!(frozen.is_frozen);
        Ok(())
    })
    .unwrap();
    assert_eq!(try_lock(&mut second).unwrap(), Answer::Locked(stored(&mut conn)));
}

#[test]
fn a_missing_key_and_a_foreign_one_are_not_found_even_when_locked() {
    let (database, mut conn) = migrated();
    assert_eq!(try_lock(&mut conn).unwrap(), Answer::NotFound);
    KeyRow { tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    assert_eq!(try_lock(&mut conn).unwrap(), Answer::NotFound);
    conn.transaction::<_, Error, _>(|conn| {
        let locked = KeysDriver::new(conn).try_fetch_key_for_update(&other(), &key("key"))?;
        assert!(matches!(locked, TryLock::Locked(_)));
        assert_eq!(try_lock(&mut database.connect().unwrap())?, Answer::NotFound);
        Ok(())
    })
    .unwrap();
}

#[test]
fn locking_a_tenant_outside_a_transaction_is_refused() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let (refused, sent) = statements_of(&mut conn, |conn| {
        KeysDriver::new(conn).try_fetch_key_for_update(&tenant(), &key("key")).map(drop)
    });
    assert!(matches!(refused, Err(Error::NotInTransaction)), "{refused:?}");
    assert!(sent.is_empty());
}

#[test]
fn a_busy_key_leaves_the_transaction_usable() {
    let (database, mut conn) = migrated();
    for id in ["key", "free"] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    let mut second = database.connect().unwrap();
    second.batch_execute("SET lock_timeout = '10s'").unwrap();
    conn.transaction::<_, Error, _>(|conn| {
        let _held = KeysDriver::new(conn).fetch_key_for_update(&tenant(), &key("key"))?;
        second.transaction::<_, Error, _>(|second| {
            let mut keys = KeysDriver::new(second);
            assert!(matches!(keys.try_fetch_key_for_update(&tenant(), &key("key"))?, TryLock::Busy));
            let TryLock::Locked(free) = keys.try_fetch_key_for_update(&tenant(), &key("free"))? else {
                panic!("not locked")
            };
            keys.update_key_unfrozen(free)?;
            Ok(())
        })
    })
    .unwrap();
}

/// The answers of another session before and after the end of a change, which is committed or rolled back.
fn before_and_after(change: &str, commit: bool) -> (Answer, Answer) {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut second = database.connect().unwrap();
    conn.batch_execute("BEGIN").unwrap();
    conn.batch_execute(change).unwrap();
    let before = try_lock(&mut second).unwrap();
    conn.batch_execute(if commit { "COMMIT" } else { "ROLLBACK" }).unwrap();
    (before, try_lock(&mut second).unwrap())
}

#[test]
fn a_key_that_an_open_transaction_removes_is_busy_until_it_is_gone() {
    let hand_over = format!("UPDATE api_keys SET tenant_id = '{OTHER}'");
    for change in ["DELETE FROM api_keys", &hand_over, "UPDATE api_keys SET id = 'elsewhere'"] {
        assert_eq!(before_and_after(change, true), (Answer::Busy, Answer::NotFound), "{change}");
        let (before, after) = before_and_after(change, false);
        assert_eq!(before, Answer::Busy, "{change}");
        assert!(matches!(after, Answer::Locked(_)), "{change}: {after:?}");
    }
}

#[test]
fn a_key_that_moves_to_the_tenant_is_not_found_until_the_commit() {
    let (database, mut conn) = migrated();
    KeyRow { tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    let mut second = database.connect().unwrap();
    conn.batch_execute("BEGIN; UPDATE api_keys SET tenant_id = '11111111-1111-1111-1111-111111111111'")
        .unwrap();
    assert_eq!(try_lock(&mut second).unwrap(), Answer::NotFound);
    conn.batch_execute("COMMIT").unwrap();
    assert!(matches!(try_lock(&mut second).unwrap(), Answer::Locked(_)));
}

#[test]
fn an_insert_that_refers_to_the_key_neither_makes_it_busy_nor_waits() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute(
        "CREATE TABLE worker_runs (id text PRIMARY KEY, api_key_id varchar(36) REFERENCES api_keys (id))",
    )
    .unwrap();
    let mut second = database.connect().unwrap();
    second
        .batch_execute("SET lock_timeout = '10s'; BEGIN; INSERT INTO worker_runs VALUES ('a', 'key')")
        .unwrap();
    conn.transaction::<_, Error, _>(|conn| {
        let locked = KeysDriver::new(conn).try_fetch_key_for_update(&tenant(), &key("key"))?;
        assert!(matches!(locked, TryLock::Locked(_)));
        second.batch_execute("COMMIT; INSERT INTO worker_runs VALUES ('b', 'key')")?;
        Ok(())
    })
    .unwrap();
}

/// Delays a statement between its snapshot and its lock with a row policy that waits, runs `meanwhile` in another
/// session, and lets the statement continue.
fn in_between(database: &Database, conn: &mut PgConnection, meanwhile: &str) -> Answer {
    conn.batch_execute(
        "CREATE FUNCTION gate() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
             PERFORM pg_advisory_lock_shared(1); PERFORM pg_advisory_unlock_shared(1); RETURN true;
         END $$;
         ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
         CREATE POLICY gate ON api_keys USING (gate());
         GRANT SELECT, UPDATE ON api_keys TO gated",
    )
    .unwrap();
    let mut gated = database.connect().unwrap();
    gated.batch_execute("SET ROLE gated").unwrap();
    conn.batch_execute("SELECT pg_advisory_lock(1)").unwrap();
    thread::scope(|scope| {
        let answer = scope.spawn(|| try_lock(&mut gated).unwrap());
        wait_until_one_waits(&mut database.connect().unwrap());
        conn.batch_execute(meanwhile).unwrap();
        conn.batch_execute("SELECT pg_advisory_unlock(1)").unwrap();
        answer.join().unwrap()
    })
}

#[test]
fn a_row_that_changes_between_snapshot_and_lock_is_busy_or_read_again() {
    // A private server, because a role belongs to the whole server.
    let server = PrivateServer::start_new().unwrap();
    let migrated = || {
        let database = server.create_database().unwrap().prepare(migrate).unwrap();
        let conn = database.connect().unwrap();
        (database, conn)
    };
    migrated().1.batch_execute("CREATE ROLE gated").unwrap();

    let hand_over = format!("UPDATE api_keys SET tenant_id = '{OTHER}'");
    for gone in ["DELETE FROM api_keys", &hand_over] {
        let (database, mut conn) = migrated();
        KeyRow::default().insert(&mut conn);
        // The key existed, and the session that removed it held its lock.
        assert_eq!(in_between(&database, &mut conn, gone), Answer::Busy, "{gone}");
        assert_eq!(try_lock(&mut conn).unwrap(), Answer::NotFound, "{gone}");
    }

    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let change = "UPDATE api_keys SET name = 'Newer'";
    let Answer::Locked(locked) = in_between(&database, &mut conn, change) else { panic!("not locked") };
    assert_eq!(locked.name, "Newer");
}

#[test]
fn of_many_concurrent_attempts_one_locks_the_key_and_none_waits() {
    const WORKERS: usize = 8;
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let everybody_tried = std::sync::Barrier::new(WORKERS);
    let locked: Vec<bool> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut conn = database.connect().unwrap();
                    conn.batch_execute("SET lock_timeout = '10s'")?;
                    conn.transaction::<_, Error, _>(|conn| {
                        let mut keys = KeysDriver::new(conn);
                        let tried = keys.try_fetch_key_for_update(&tenant(), &key("key"));
                        everybody_tried.wait();
                        let tried = tried?;
                        assert!(!matches!(tried, TryLock::NotFound));
                        Ok(matches!(tried, TryLock::Locked(_)))
                    })
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap().unwrap()).collect()
    });
    assert_eq!(locked.iter().filter(|locked| **locked).count(), 1);
}

#[test]
fn a_lock_that_does_not_wait_finds_its_row_by_the_primary_key() {
    // Whether a key exists can be read from any index that contains its id.
    plans_of("try_fetch_key_for_update")
        .or_read(&["Index Only Scan using "])
        .read(&["Index Scan using api_keys_pkey", "CTE Scan on locked"]);
}
