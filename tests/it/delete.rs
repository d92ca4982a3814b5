//! Deleting one key, or a tenant's keys in batches, and the data that outlives them.

use std::thread;

use api_keys_driver::{Error, KeyEventKind, KeySnapshot, KeyUse, KeysDriver, NewCall, Page, Result};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::support::{
    KeyRow, OTHER, TENANT, at, existing_service, fetch, key, migrated, new_key, other, plans_of, tenant,
    wait_until_one_waits, with_locked,
};

#[expect(clippy::redundant_closure_for_method_calls, reason = "the path is not general over the borrow")]
fn delete(conn: &mut PgConnection) -> Result<KeySnapshot> {
    with_locked(conn, |keys, key| keys.delete_key(key))
}

#[test]
fn a_deleted_key_is_returned_as_it_was() {
    let (_database, mut conn) = migrated();
    KeyRow { is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "beside", ..KeyRow::default() }.insert(&mut conn);
    let before = fetch(&mut conn, "key");
    let deleted = delete(&mut conn).unwrap();
    assert_eq!(deleted, before);
    let mut keys = KeysDriver::new(&mut conn);
    assert_eq!(keys.fetch_key_by_id(&tenant(), &key("key")).unwrap(), None);
    assert_eq!(keys.fetch_key_by_hash(&"key".into()).unwrap(), None);
    assert_eq!(keys.count_keys(&tenant()).unwrap(), 1);
    assert_eq!(keys.insert_key(&new_key("key")).unwrap().id, key("key"), "its id and hash are free");
}

#[test]
fn the_events_and_calls_of_a_deleted_key_stay() {
    let (_database, mut conn) = migrated();
    KeysDriver::new(&mut conn).insert_key(&new_key("key")).unwrap();
    let call = NewCall::new(tenant(), "call", key("key"), at("2026-01-01T00:00:00Z"));
    KeysDriver::new(&mut conn).insert_calls(&[call]).unwrap();
    delete(&mut conn).unwrap();
    let mut keys = KeysDriver::new(&mut conn);
    let events = keys.fetch_key_events(&tenant(), &key("key"), Page::default()).unwrap();
    let kinds: Vec<_> = events.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [KeyEventKind::Inserted, KeyEventKind::Deleted]);
    let used = keys.fetch_key_usage(&tenant(), &key("key"), at("2026-01-01T00:00:00Z")).unwrap();
    assert_eq!(used.request_count, 1);
}

#[test]
fn a_deletion_waits_for_an_insert_that_refers_to_the_key() {
    let Some((database, mut conn)) = existing_service() else { return };
    api_keys_driver::migrate(&mut conn).unwrap();
    KeyRow { key_prefix: "sk-live-ab", ..KeyRow::default() }.insert(&mut conn);
    let (mut watcher, mut deleter) = (database.connect().unwrap(), database.connect().unwrap());
    conn.batch_execute(&format!("BEGIN; INSERT INTO worker_runs VALUES ('run', '{TENANT}', 'key')")).unwrap();
    thread::scope(|scope| {
        let deleting = scope.spawn(move || delete(&mut deleter));
        wait_until_one_waits(&mut watcher);
        conn.batch_execute("COMMIT").unwrap();
        deleting.join().unwrap().unwrap();
    });
    let unset = "SELECT FROM worker_runs WHERE api_key_id IS NULL";
    assert_eq!(diesel::sql_query(unset).execute(&mut conn).unwrap(), 1);

    KeyRow { key_prefix: "sk-live-ab", ..KeyRow::default() }.insert(&mut conn);
    conn.batch_execute(
        "CREATE TABLE bills (api_key_id varchar(36) REFERENCES api_keys (id)); INSERT INTO bills VALUES ('key')",
    )
    .unwrap();
    let refused = delete(&mut conn);
    assert!(matches!(refused, Err(Error::Query(_))), "{refused:?}");
}

fn with_keys(ours: u32) -> (throwaway_postgres::Database, PgConnection) {
    let (database, mut conn) = migrated();
    for n in 0..ours {
        let (id, status) = (format!("key {n}"), if n % 2 == 0 { "active" } else { "revoked" });
        KeyRow { id: &id, status, is_frozen: n % 3 == 0, is_synthetic: n % 5 == 0, ..KeyRow::default() }
            .insert(&mut conn);
    }
    KeyRow { id: "foreign", tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    (database, conn)
}

#[test]
fn a_tenants_keys_are_deleted_in_batches_whatever_their_state() {
    let (_database, mut conn) = with_keys(25);
    let mut keys = KeysDriver::new(&mut conn);
    assert_eq!(keys.delete_keys(&tenant(), 0).unwrap(), 0);
    let batches: Vec<i64> = (0..4).map(|_| keys.delete_keys(&tenant(), 10).unwrap()).collect();
    assert_eq!(batches, [10, 10, 5, 0]);
    assert_eq!((keys.count_keys(&tenant()).unwrap(), keys.count_keys(&other()).unwrap()), (0, 1));
    assert_eq!(keys.delete_keys(&"nobody".into(), u32::MAX).unwrap(), 0);
}

#[test]
fn deleters_and_recorders_of_the_same_keys_do_not_deadlock() {
    const KEYS: u32 = 200;
    let (database, mut conn) = with_keys(KEYS);
    let uses: Vec<_> = (0..KEYS)
        .rev()
        .map(|n| KeyUse {
            tenant_id: tenant(),
            key_id: key(&format!("key {n}")),
            count: 1,
            at: at("2026-01-01T00:00:00Z"),
        })
        .collect();
    let deleted: i64 = thread::scope(|scope| {
        let recorders: Vec<_> = (0..3)
            .map(|_| {
                let (mut conn, uses) = (database.connect().unwrap(), &uses);
                scope.spawn(move || {
                    for _ in 0..20 {
                        KeysDriver::new(&mut conn).record_key_uses(uses).unwrap();
                    }
                })
            })
            .collect();
        let deleters: Vec<_> = (0..3)
            .map(|_| {
                let mut conn = database.connect().unwrap();
                scope.spawn(move || -> i64 {
                    (0..60).map(|_| KeysDriver::new(&mut conn).delete_keys(&tenant(), 7).unwrap()).sum()
                })
            })
            .collect();
        let deleted = deleters.into_iter().map(|deleter| deleter.join().unwrap()).sum();
        for recorder in recorders {
            recorder.join().unwrap();
        }
        deleted
    });
    let left = KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap();
    assert_eq!((deleted + left, left), (KEYS.into(), 0), "each key is deleted once");
}

#[test]
fn deletions_find_their_rows_with_an_index() {
    plans_of("delete_key").read(&["Index Scan using api_keys_pkey"]);
    plans_of("delete_keys").sort_by(&["Sort Key: api_keys_1.id"]).read(&[
        "LockRows",
        "using ix_api_keys_tenant_newest_first",
        "Index Scan using api_keys_pkey",
    ]);
}
