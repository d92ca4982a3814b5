//! A lock of another connection, or a lock that was lost, does not allow a change.

use api_keys_driver::schema::api_keys;
use api_keys_driver::{Error, KeySnapshot, KeysDriver, LockedKey, Result};
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::support::{KeyRow, at, key, migrated, tenant};

fn begin(keys: &mut KeysDriver<'_>) {
    AnsiTransactionManager::begin_transaction(keys.connection()).unwrap();
}

fn commit(keys: &mut KeysDriver<'_>) {
    AnsiTransactionManager::commit_transaction(keys.connection()).unwrap();
}

fn roll_back(keys: &mut KeysDriver<'_>) {
    AnsiTransactionManager::rollback_transaction(keys.connection()).unwrap();
}

fn lock<'c>(keys: &mut KeysDriver<'c>) -> LockedKey<'c> {
    keys.fetch_key_for_update(&tenant(), &key("key")).unwrap().unwrap()
}

fn freeze<'c>(keys: &mut KeysDriver<'c>, locked: LockedKey<'c>) -> Result<KeySnapshot> {
    keys.update_key_frozen(locked, at("2026-06-01T12:00:00Z"))
}

/// Another transaction revokes the key.
fn revoke_elsewhere(database: &Database) {
    let mut conn = database.connect().unwrap();
    let revoked = conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let locked = keys.fetch_key_for_update(&tenant(), &key("key"))?.expect("the key");
        keys.update_key_revoked(locked, at("2026-05-01T12:00:00Z"), None)
    });
    revoked.unwrap();
}

#[test]
fn a_lock_is_refused_on_another_connection_at_the_same_address() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    begin(&mut keys);
    let locked = lock(&mut keys);
    *keys.connection() = database.connect().unwrap();
    begin(&mut keys);
    let refused = freeze(&mut keys, locked);
    assert!(matches!(&refused, Err(Error::LockedElsewhere(id)) if *id == key("key")), "{refused:?}");
    roll_back(&mut keys);

    let mut other = database.connect().unwrap();
    begin(&mut keys);
    let locked = lock(&mut keys);
    std::mem::swap(keys.connection(), &mut other);
    begin(&mut keys);
    let refused = freeze(&mut keys, locked);
    assert!(matches!(refused, Err(Error::LockedElsewhere(_))), "{refused:?}");
}

#[test]
fn a_lock_stays_valid_when_its_connection_is_moved_in_memory() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    begin(&mut keys);
    let locked = lock(&mut keys);
    let mut elsewhere = database.connect().unwrap();
    std::mem::swap(keys.connection(), &mut elsewhere);
    let moved = Box::new(elsewhere);
    *keys.connection() = *moved;
    assert!(freeze(&mut keys, locked).unwrap().is_frozen);
    commit(&mut keys);
}

#[test]
fn a_lock_lost_by_rollback_is_refused_if_the_key_was_changed_since() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    begin(&mut keys);
    let locked = lock(&mut keys);
    commit(&mut keys);
    revoke_elsewhere(&database);
    begin(&mut keys);
    let refused = freeze(&mut keys, locked);
    assert!(matches!(&refused, Err(Error::LockLost(id)) if *id == key("key")), "{refused:?}");
    commit(&mut keys);
    let stored = keys.fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
    assert!(!stored.is_frozen && stored.status.as_str() == "revoked", "{stored:?}");
}

#[test]
fn a_lock_lost_by_a_savepoint_is_refused_if_the_key_was_changed_since() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    for has_written in [false, true] {
        let mut keys = KeysDriver::new(&mut conn);
        begin(&mut keys);
        if has_written {
            KeyRow { id: "other", ..KeyRow::default() }.insert(keys.connection());
        }
        begin(&mut keys);
        let locked = lock(&mut keys);
        roll_back(&mut keys);
        revoke_elsewhere(&database);
        diesel::update(api_keys::table.find("key"))
            .set(api_keys::name.eq(format!("changed {has_written}")))
            .execute(&mut database.connect().unwrap())
            .unwrap();
        let refused = freeze(&mut keys, locked);
        assert!(matches!(refused, Err(Error::LockLost(_))), "{refused:?}");
        roll_back(&mut keys);
    }
}

#[test]
fn a_change_by_the_same_transaction_after_the_lock_is_allowed() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    for in_savepoint in [false, true] {
        let mut keys = KeysDriver::new(&mut conn);
        begin(&mut keys);
        let (first, second) = (lock(&mut keys), lock(&mut keys));
        if in_savepoint {
            begin(&mut keys);
        }
        let rename = "UPDATE api_keys SET name = name || ' renamed'";
        keys.connection().batch_execute(rename).unwrap();
        freeze(&mut keys, first).unwrap();
        if in_savepoint {
            commit(&mut keys);
        }
        let after = keys.update_key_unfrozen(second).unwrap();
        assert!(!after.is_frozen && after.name.ends_with(" renamed"), "{after:?}");
        commit(&mut keys);
    }
}
