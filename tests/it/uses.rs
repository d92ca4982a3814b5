//! Batches of uses: exact, in one lock order, and cheap.

use std::thread;

use api_keys_driver::{KeyHash, KeyUse, KeysDriver, Page, TenantId};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::every_method::{Method, read};
use crate::support::{
    KeyRow, OTHER, TENANT, at, fetch, key, migrated, other, plans::Plans, plans_of, statements_of, tenant,
    wait_until_one_waits,
};

fn used(key_id: &str, count: u32, at: DateTime<Utc>) -> KeyUse {
    KeyUse { tenant_id: tenant(), key_id: key(key_id), count, at }
}

#[test]
fn uses_add_up_and_the_last_one_stands() {
    let (_database, mut conn) = migrated();
    let noon = at("2026-06-01T12:00:00Z");
    let hour = TimeDelta::hours(1);
    KeyRow { id: "fresh", ..KeyRow::default() }.insert(&mut conn);
    let later = Some(noon + hour * 9);
    KeyRow { id: "used", total_requests: 5, last_used_at: later, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "bystander", ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "foreign", tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);

    let batch = [
        used("fresh", 1, noon + hour),
        used("used", u32::MAX, noon),
        used("fresh", 2, noon + hour * 2),
        used("fresh", 0, noon),
        used("used", u32::MAX, noon),
        used("missing", 1, noon),
        used("foreign", 1, noon),
        KeyUse { tenant_id: other(), ..used("bystander", 1, noon) },
    ];
    assert_eq!(KeysDriver::new(&mut conn).record_key_uses(&batch).unwrap(), 2);

    let totals = |conn: &mut PgConnection, id| {
        let key = fetch(conn, id);
        (key.total_requests, key.last_used_at)
    };
    assert_eq!(totals(&mut conn, "fresh"), (3, Some(noon + hour * 2)));
    assert_eq!(totals(&mut conn, "used"), (5 + 2 * i64::from(u32::MAX), later));
    assert_eq!(totals(&mut conn, "bystander"), (0, None));
    let foreign = KeysDriver::new(&mut conn).fetch_key_by_id(&other(), &key("foreign")).unwrap().unwrap();
    assert_eq!(foreign.total_requests, 0);
}

#[test]
fn a_batch_may_span_tenants() {
    let (_database, mut conn) = migrated();
    let noon = at("2026-06-01T12:00:00Z");
    KeyRow { id: "one", ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "two", tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    let batch = [used("one", 1, noon), KeyUse { tenant_id: other(), ..used("two", 1, noon) }];
    assert_eq!(KeysDriver::new(&mut conn).record_key_uses(&batch).unwrap(), 2);
}

#[test]
fn an_empty_batch_sends_nothing() {
    let (_database, mut conn) = migrated();
    let (changed, sent) = statements_of(&mut conn, |conn| KeysDriver::new(conn).record_key_uses(&[]));
    assert_eq!((changed.unwrap(), sent.len()), (0, 0));
}

#[test]
fn a_use_is_no_change_and_touches_no_indexed_column() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    keys.record_key_uses(&[used("key", 1, at("2026-06-01T12:00:00Z"))]).unwrap();

    assert_eq!(keys.fetch_key_by_hash(&KeyHash::from("key")).unwrap().unwrap().revision, 1);
    assert_eq!(keys.fetch_key_events(&tenant(), &key("key"), Page::default()).unwrap().len(), 1);
    let indexed = diesel::sql_query(
        "SELECT FROM pg_attribute
         JOIN pg_index ON indrelid = attrelid AND attnum = ANY (indkey)
         WHERE attrelid = 'api_keys'::regclass AND attname IN ('last_used_at', 'total_requests')",
    );
    assert_eq!(indexed.execute(&mut conn).unwrap(), 0);
}

#[test]
fn a_use_that_waited_adds_to_what_the_other_left() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let (noon, mut watcher) = (at("2026-06-01T12:00:00Z"), database.connect().unwrap());
    conn.batch_execute("BEGIN; UPDATE api_keys SET total_requests = 41, last_used_at = '2027-01-01Z'")
        .unwrap();
    thread::scope(|scope| {
        let mut second = database.connect().unwrap();
        let recording =
            scope.spawn(move || KeysDriver::new(&mut second).record_key_uses(&[used("key", 1, noon)]));
        wait_until_one_waits(&mut watcher);
        conn.batch_execute("COMMIT").unwrap();
        assert_eq!(recording.join().unwrap().unwrap(), 1);
    });
    let key = fetch(&mut conn, "key");
    assert_eq!((key.total_requests, key.last_used_at), (42, Some(at("2027-01-01T00:00:00Z"))));
}

/// A permutation of `0..len` that is another for each seed.
fn shuffled(len: usize, seed: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..len).collect();
    let mut state = seed as u64;
    for i in (1..len).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(i, usize::try_from(state >> 33).unwrap() % (i + 1));
    }
    order
}

#[test]
fn sixteen_threads_with_overlapping_shuffled_batches_neither_deadlock_nor_lose_a_use() {
    const THREADS: usize = 16;
    const BATCHES: usize = 200;
    const KEYS: usize = 12;
    const TENANTS: [&str; 2] = [TENANT, OTHER];
    let (database, mut conn) = migrated();
    let ids: Vec<String> = (0..KEYS).map(|n| format!("key-{n:02}")).collect();
    let owner = |n: usize| TenantId::from(TENANTS[n % 2]);
    for (n, id) in ids.iter().enumerate() {
        KeyRow { id, tenant_id: owner(n).as_str(), ..KeyRow::default() }.insert(&mut conn);
    }
    let noon = at("2026-06-01T12:00:00Z");
    let micros = |n: usize| TimeDelta::microseconds(i64::try_from(n).unwrap());

    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (mut conn, ids) = (database.connect().unwrap(), &ids);
            scope.spawn(move || {
                for batch in 0..BATCHES {
                    let uses: Vec<_> = shuffled(KEYS, thread * BATCHES + batch)
                        .into_iter()
                        .map(|n| KeyUse {
                            tenant_id: owner(n),
                            at: noon + micros(thread * BATCHES + batch),
                            ..used(&ids[n], u32::try_from(n).unwrap() + 1, noon)
                        })
                        .collect();
                    assert_eq!(
                        KeysDriver::new(&mut conn).record_key_uses(&uses).unwrap(),
                        i64::try_from(KEYS).unwrap()
                    );
                }
            });
        }
    });
    let mut keys = KeysDriver::new(&mut conn);
    for (n, id) in ids.iter().enumerate() {
        let key = keys.fetch_key_by_id(&owner(n), &key(id)).unwrap().unwrap();
        assert_eq!(key.total_requests, i64::try_from((n + 1) * THREADS * BATCHES).unwrap(), "{id}");
        let last = noon + micros(THREADS * BATCHES - 1);
        assert_eq!(key.last_used_at, Some(last), "{id}");
    }
}

#[test]
fn uses_probe_the_primary_key_and_lock_in_the_order_of_tenant_and_key() {
    const BATCH: Method = read("record_key_uses of 1,000", |conn, with| {
        let used = |n| KeyUse {
            tenant_id: with.tenant_id.clone(),
            ..used(&format!("{}{n}", &with.key_id.as_str()[..1]), 1, with.time)
        };
        let batch: Vec<_> = (1..=1_000).map(used).collect();
        KeysDriver::new(conn).record_key_uses(&batch).map(|changed| changed.to_string())
    });
    let scans = [
        "LockRows",
        "Index Scan using api_keys_pkey on api_keys api_keys_1",
        "Index Scan using api_keys_pkey on api_keys ",
    ];
    let by_id = ["Sort Key: api_keys_1.id"];
    plans_of("record_key_uses").of_large_tenants().sort_by(&by_id).read(&scans);
    Plans::of(&BATCH).of_large_tenants().sort_by(&by_id).read(&scans);
    let by_tenant = ["Sort Key: api_keys_1.tenant_id, api_keys_1.id"];
    plans_of("record_key_uses.two_tenants").sort_by(&by_tenant).read(&scans);
}
