//! The lock of one key, and the properties of every change of a locked key.

use std::thread;

use api_keys_driver::schema::api_keys;
use api_keys_driver::{
    ApiKeysFacadeDriver, Error, Freeze, KeyChanges, KeySnapshot, KeySuccessor, KeysDriver, LockedKey, Result,
};
use chrono::{DateTime, Utc};
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;

use crate::support::{
    KeyRow, OTHER, at, fetch, key, migrated, other, plans_of, tenant, wait_until_one_waits, with_locked,
};

type Change = for<'c> fn(&mut KeysDriver<'c>, LockedKey<'c>) -> Result<KeySnapshot>;

/// Every way to change a locked key.
const CHANGES: [Change; 7] = [
    |keys, key| keys.update_key_frozen(key, now()),
    |keys, key| keys.update_key_frozen_by(key, &Freeze { at: now(), by: "ops", reason: None }),
    |keys, key| keys.update_key_unfrozen(key),
    |keys, key| keys.update_key_revoked(key, now(), None),
    |keys, key| keys.update_key_expires_at(key, None),
    |keys, key| keys.update_key(key, &KeyChanges::default()),
    |keys, key| {
        keys.insert_key_successor(&key, &KeySuccessor::new("new".into(), "sk-live", "new".into(), now()))
    },
];

fn now() -> DateTime<Utc> {
    at("2026-06-01T12:00:00Z")
}

#[test]
fn locking_a_missing_or_foreign_key_is_none() {
    let (_database, mut conn) = migrated();
    KeyRow { tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        assert!(keys.fetch_key_for_update(&tenant(), &key("key"))?.is_none());
        assert!(keys.fetch_key_for_update(&other(), &key("missing"))?.is_none());
        assert!(keys.fetch_key_for_update(&other(), &key("key"))?.is_some());
        Ok::<_, Error>(())
    })
    .unwrap();
}

#[test]
fn locking_outside_a_transaction_is_refused() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let refused = KeysDriver::new(&mut conn).fetch_key_for_update(&tenant(), &key("key"));
    assert!(matches!(refused, Err(Error::NotInTransaction)), "{refused:?}");
}

#[test]
fn a_second_lock_waits_for_the_first_and_sees_its_change() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let now = at("2026-06-01T12:00:00Z");

    thread::scope(|scope| {
        let second = with_locked(&mut conn, |keys, locked| {
            let mut other_worker = database.connect().unwrap();
            let second =
                scope.spawn(move || with_locked(&mut other_worker, |_, locked| Ok(locked.into_snapshot())));
            wait_until_one_waits(&mut database.connect().unwrap());
            assert!(!second.is_finished());
            keys.update_key_frozen(locked, now)?;
            Ok(second)
        });
        let seen = second.unwrap().join().unwrap().unwrap();
        assert_eq!(seen.frozen_at, Some(now));
    });
}

#[test]
fn a_lock_blocks_neither_readers_nor_inserts_that_refer_to_the_key() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute(
        "CREATE TABLE worker_runs (id text PRIMARY KEY, api_key_id varchar(36) REFERENCES api_keys (id))",
    )
    .unwrap();
    let mut bystander = database.connect().unwrap();
    bystander.batch_execute("SET lock_timeout = '10s'").unwrap();

    with_locked(&mut conn, |keys, locked| {
        bystander.batch_execute("INSERT INTO worker_runs VALUES ('before', 'key')").unwrap();
        keys.update_key_frozen(locked, at("2026-06-01T12:00:00Z"))?;
        bystander.batch_execute("INSERT INTO worker_runs VALUES ('after', 'key')").unwrap();
        let read = KeysDriver::new(&mut bystander).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
        assert!(!read.is_frozen, "what is not committed was read");
        Ok(())
    })
    .unwrap();
}

#[test]
fn every_change_refuses_a_lock_of_another_connection() {
    for change in CHANGES {
        let (database, mut conn) = migrated();
        KeyRow::default().insert(&mut conn);
        let before = fetch(&mut conn, "key");
        let mut second = database.connect().unwrap();
        second.batch_execute("SET lock_timeout = '5s'").unwrap();
        let refused = conn.transaction(|conn| {
            let locked = KeysDriver::new(conn).fetch_key_for_update(&tenant(), &key("key"))?.unwrap();
            second.transaction(|second| change(&mut KeysDriver::new(second), locked))
        });
        assert!(matches!(&refused, Err(Error::LockedElsewhere(id)) if *id == key("key")), "{refused:?}");
        assert_eq!(fetch(&mut conn, "key"), before);
    }
}

#[test]
fn every_change_refuses_a_lock_after_a_commit_by_sql() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    for change in CHANGES {
        AnsiTransactionManager::begin_transaction(keys.connection()).unwrap();
        let locked = keys.fetch_key_for_update(&tenant(), &key("key")).unwrap().unwrap();
        AnsiTransactionManager::commit_transaction(keys.connection()).unwrap();
        let refused = change(&mut keys, locked);
        assert!(matches!(refused, Err(Error::NotInTransaction)), "{refused:?}");
    }
}

#[test]
fn every_change_of_a_row_that_the_transaction_deleted_is_an_error() {
    for change in CHANGES {
        let (_database, mut conn) = migrated();
        KeyRow::default().insert(&mut conn);
        let gone = with_locked(&mut conn, |keys, locked| {
            diesel::delete(api_keys::table).execute(keys.connection())?;
            change(keys, locked)
        });
        assert!(matches!(&gone, Err(Error::LockLost(id)) if *id == key("key")), "{gone:?}");
    }
}

#[test]
fn a_transaction_that_fails_leaves_the_locked_key_as_it_was() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let failed: Result<()> = with_locked(&mut conn, |keys, locked| {
        keys.update_key_frozen(locked, at("2026-06-01T12:00:00Z"))?;
        Err(diesel::result::Error::RollbackTransaction.into())
    });
    assert!(failed.is_err());
    let key = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
    assert!(!key.is_frozen);
}

#[test]
fn a_lock_finds_its_row_by_the_primary_key() {
    plans_of("fetch_key_for_update").read(&["Index Scan using api_keys_pkey"]);
}

#[test]
fn the_debug_output_of_drivers_and_locks_names_the_tenant_and_the_key_but_no_hash() {
    let (_database, mut conn) = migrated();
    KeyRow { key_hash: Some("the hash"), ..KeyRow::default() }.insert(&mut conn);
    conn.transaction(|conn| {
        assert_eq!(format!("{:?}", ApiKeysFacadeDriver::new(conn)), "ApiKeysFacadeDriver { .. }");
        let mut keys = KeysDriver::new(conn);
        assert_eq!(format!("{keys:?}"), "KeysDriver { .. }");
        let locked = keys.lock_tenant(&tenant())?;
        assert_eq!(format!("{locked:?}"), format!("LockedTenant({:?})", tenant()));
        let locked = keys.fetch_key_for_update(&tenant(), &key("key"))?.unwrap();
        let shown = format!("{locked:?}");
        assert_eq!(shown, format!("LockedKey({:?})", *locked));
        assert!(!shown.contains("the hash"));
        Ok::<_, Error>(())
    })
    .unwrap();
}
