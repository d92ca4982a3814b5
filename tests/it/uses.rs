//! Batches of uses: they are exact, lock in one order, and are cheap.

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
fn uses_are_added_up_and_the_latest_time_is_kept() {
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
fn a_use_that_waited_adds_to_the_committed_count() {
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

/// A permutation of `0..len` that differs for each seed.
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
fn overlapping_shuffled_batches_neither_deadlock_nor_lose_a_use() {
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

fn try_record(conn: &mut PgConnection, uses: &[KeyUse]) -> Vec<KeyUse> {
    KeysDriver::new(conn).try_record_key_uses(uses).unwrap()
}

fn total(conn: &mut PgConnection, id: &str) -> i64 {
    fetch(conn, id).total_requests
}

#[test]
fn uses_of_a_busy_key_are_returned_at_once_and_the_others_are_recorded() {
    let (database, mut conn) = migrated();
    let noon = at("2026-06-01T12:00:00Z");
    for id in ["busy", "free", "too"] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    KeyRow { id: "foreign", tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    let batch = [
        used("busy", u32::MAX, noon),
        used("free", 1, noon),
        used("missing", 1, noon),
        used("busy", u32::MAX, noon - TimeDelta::hours(1)),
        used("foreign", 1, noon),
        used("too", 2, noon),
        used("bu\0sy", 2, noon),
    ];
    let mut holder = database.connect().unwrap();
    for hold in [
        "SELECT FROM api_keys WHERE id = 'busy' FOR UPDATE",
        "UPDATE api_keys SET name = 'x' WHERE id = 'busy'",
    ] {
        holder.batch_execute(&format!("BEGIN; {hold}")).unwrap();
        conn.batch_execute("SET lock_timeout = '1ms'").unwrap();
        let busy = conn.transaction::<_, api_keys_driver::Error, _>(|conn| {
            let busy = try_record(conn, &batch);
            // The transaction continues, and its own rows are not busy.
            assert_eq!(try_record(conn, &batch[1..2]), []);
            Ok(busy)
        });
        assert_eq!(busy.unwrap(), [batch[0].clone(), batch[3].clone()], "{hold}");
        holder.batch_execute("ROLLBACK").unwrap();
    }
    assert_eq!((total(&mut conn, "busy"), total(&mut conn, "free"), total(&mut conn, "too")), (0, 4, 4));
    let several_tenants =
        [batch[0].clone(), batch[3].clone(), KeyUse { tenant_id: other(), ..batch[4].clone() }];
    assert_eq!(try_record(&mut conn, &several_tenants), []);
    let key = fetch(&mut conn, "busy");
    assert_eq!((key.total_requests, key.last_used_at), (2 * i64::from(u32::MAX), Some(noon)));
    let foreign = KeysDriver::new(&mut conn).fetch_key_by_id(&other(), &"foreign".into()).unwrap().unwrap();
    assert_eq!(foreign.total_requests, 1);
}

#[test]
fn uses_of_a_busy_key_are_returned_only_for_its_own_tenant() {
    let (database, mut conn) = migrated();
    let noon = at("2026-06-01T12:00:00Z");
    KeyRow::default().insert(&mut conn);
    let mut holder = database.connect().unwrap();
    holder.batch_execute("BEGIN; SELECT FROM api_keys FOR NO KEY UPDATE").unwrap();
    let batch = [used("key", 1, noon), KeyUse { tenant_id: other(), ..used("key", 2, noon) }];
    assert_eq!(try_record(&mut conn, &batch), [batch[0].clone()]);
}

#[test]
fn uses_of_a_key_that_is_being_deleted_are_returned_once_and_then_dropped() {
    let (database, mut conn) = migrated();
    let noon = at("2026-06-01T12:00:00Z");
    for leaving in ["DELETE FROM api_keys", "UPDATE api_keys SET tenant_id = 'another'"] {
        KeyRow::default().insert(&mut conn);
        let mut holder = database.connect().unwrap();
        holder.batch_execute(&format!("BEGIN; {leaving}")).unwrap();
        let handed_back = try_record(&mut conn, &[used("key", 1, noon)]);
        assert_eq!(handed_back, [used("key", 1, noon)], "{leaving}");
        holder.batch_execute("COMMIT").unwrap();
        assert_eq!(try_record(&mut conn, &handed_back), [], "{leaving}");
        conn.batch_execute("DELETE FROM api_keys").unwrap();
    }
}

#[test]
fn concurrent_flushes_lose_no_use_and_count_none_twice() {
    const FLUSHERS: usize = 6;
    const ROUNDS: usize = 150;
    const KEYS: usize = 8;
    let (database, mut conn) = migrated();
    let ids: Vec<String> = (0..KEYS).map(|n| format!("key-{n}")).collect();
    for id in &ids {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    let noon = at("2026-06-01T12:00:00Z");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let over = || is_over.load(std::sync::atomic::Ordering::Relaxed);
    let handed_back: usize = thread::scope(|scope| {
        let holders: Vec<_> = (0..2)
            .map(|seed| {
                let (mut conn, ids) = (database.connect().unwrap(), &ids);
                scope.spawn(move || {
                    for round in 0.. {
                        if over() {
                            break;
                        }
                        let id = &ids[shuffled(KEYS, seed + 7 * round)[0]];
                        // Holds the row for some time, and changes its counter too.
                        conn.batch_execute(&format!(
                            "BEGIN; UPDATE api_keys SET total_requests = total_requests + 1000000000 WHERE id = '{id}';
                             SELECT pg_sleep(0.002); ROLLBACK"
                        ))
                        .unwrap();
                    }
                })
            })
            .collect();
        let flushers: Vec<_> = (0..FLUSHERS)
            .map(|flusher| {
                let (mut conn, ids) = (database.connect().unwrap(), &ids);
                scope.spawn(move || {
                    let (mut queue, mut handed_back) = (Vec::new(), 0);
                    for round in 0..ROUNDS {
                        let order = shuffled(KEYS, flusher * ROUNDS + round);
                        queue.extend(order.into_iter().map(|n| used(&ids[n], 1, noon)));
                        queue = KeysDriver::new(&mut conn).try_record_key_uses(&queue).unwrap();
                        handed_back += queue.len();
                    }
                    KeysDriver::new(&mut conn).record_key_uses(&queue).unwrap();
                    handed_back
                })
            })
            .collect();
        let handed_back = flushers.into_iter().map(|flusher| flusher.join().unwrap()).sum();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        for holder in holders {
            holder.join().unwrap();
        }
        handed_back
    });
    assert!(handed_back > 0, "nobody was ever busy");
    for id in &ids {
        assert_eq!(total(&mut conn, id), i64::try_from(FLUSHERS * ROUNDS).unwrap(), "{id}");
    }
}

#[test]
fn a_counter_and_a_time_saturate() {
    let (_database, mut conn) = migrated();
    KeyRow { id: "end", total_requests: i64::MAX - 1, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "other", ..KeyRow::default() }.insert(&mut conn);
    let batch = [
        used("end", 2, DateTime::<Utc>::MAX_UTC),
        used("other", 1, DateTime::<Utc>::MIN_UTC),
        used("\0", 1, DateTime::<Utc>::MIN_UTC),
    ];
    assert_eq!(KeysDriver::new(&mut conn).record_key_uses(&batch).unwrap(), 2);
    assert_eq!(try_record(&mut conn, &batch), []);
    let end = fetch(&mut conn, "end");
    assert_eq!((end.total_requests, end.last_used_at), (i64::MAX, Some(DateTime::<Utc>::MAX_UTC)));
    assert_eq!((total(&mut conn, "other"), total(&mut conn, "end")), (2, i64::MAX));
}

#[test]
fn a_batch_without_a_possible_key_sends_nothing() {
    let (_database, mut conn) = migrated();
    let batch = [used("\0", 1, at("2026-06-01T12:00:00Z"))];
    let (answers, sent) = statements_of(&mut conn, |conn| {
        let mut keys = KeysDriver::new(conn);
        (keys.record_key_uses(&batch).unwrap(), keys.try_record_key_uses(&batch).unwrap())
    });
    assert_eq!((answers, sent.len()), ((0, vec![]), 0));
}

#[test]
fn uses_that_do_not_wait_probe_the_primary_key() {
    let scans = ["LockRows", "Index Scan using api_keys_pkey on api_keys", "(hashed SubPlan"];
    let by_id = ["Sort Key: api_keys_1.id"];
    plans_of("try_record_key_uses").of_large_tenants().read_in_vain().sort_by(&by_id).read(&scans);
    let by_tenant = ["Sort Key: api_keys_1.tenant_id, api_keys_1.id"];
    plans_of("try_record_key_uses.two_tenants").read_in_vain().sort_by(&by_tenant).read(&scans);
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
