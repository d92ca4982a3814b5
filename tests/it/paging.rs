//! Pages after a cursor, and counts with a bound.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use api_keys_driver::{ApiKeysFacadeDriver, Error, KeyCursor, KeyId, KeyStatus, KeysDriver, Page};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::support::{KeyRow, OTHER, TENANT, at, key, migrated, other, plans_of, tenant};

/// The ids of a tenant's keys, read with a cursor in pages of `limit`.
fn walk(conn: &mut PgConnection, limit: u32) -> Vec<KeyId> {
    let mut ids = Vec::new();
    let mut cursor: Option<KeyCursor> = None;
    loop {
        let keys = KeysDriver::new(conn).fetch_keys_after(&tenant(), cursor.as_ref(), limit).unwrap();
        let Some(last) = keys.last() else { return ids };
        cursor = Some(last.into());
        ids.extend(keys.into_iter().map(|key| key.id));
        assert!(ids.len() < 200_000, "the walk runs in a circle");
    }
}

/// Inserts keys of one tenant, with `a_moment` keys per microsecond, and with ids in another order than their times.
fn insert_many(conn: &mut PgConnection, keys: u32, a_moment: u32) {
    conn.batch_execute(&format!(
        "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, is_synthetic, status, created_at)
         SELECT left(md5(n::text), 12) || n, '{TENANT}', '', '', n, n % 3 = 0, CASE n % 2 WHEN 0 THEN 'active' ELSE 'revoked' END,
                timestamptz '2026-01-01 00:00:00Z' + (n / {a_moment}) * interval '1 microsecond'
         FROM generate_series(1, {keys}) AS n"
    ))
    .unwrap();
}

#[test]
fn paging_by_cursor_returns_the_keys_of_the_pages_in_order() {
    let (_database, mut conn) = migrated();
    insert_many(&mut conn, 500, 7);
    KeyRow { tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);

    let all = Page { limit: u32::MAX, offset: 0 };
    let expected: Vec<KeyId> = KeysDriver::new(&mut conn)
        .fetch_keys(&tenant(), all)
        .unwrap()
        .into_iter()
        .map(|key| key.id)
        .collect();
    assert_eq!(expected.len(), 500);
    for limit in [1, 7, 50, 499, 500, u32::MAX] {
        assert_eq!(walk(&mut conn, limit), expected, "{limit} at a time");
    }
    for offset in [1, 6, 250, 499, 500] {
        let page = Page { limit: 20, offset };
        let ids: Vec<KeyId> = KeysDriver::new(&mut conn)
            .fetch_keys(&tenant(), page)
            .unwrap()
            .into_iter()
            .map(|key| key.id)
            .collect();
        assert_eq!(ids, expected.iter().skip(offset as usize).take(20).cloned().collect::<Vec<_>>());
    }
}

#[test]
fn paging_by_cursor_in_the_facade_returns_the_keys_of_its_pages() {
    let (_database, mut conn) = migrated();
    insert_many(&mut conn, 300, 7);
    let mut api_keys = ApiKeysFacadeDriver::new(&mut conn);
    for status in [None, Some(&KeyStatus::Active), Some(&KeyStatus::Revoked), Some(&KeyStatus::Expired)] {
        let all = api_keys.fetch_api_keys(&tenant(), status, Page { limit: u32::MAX, offset: 0 }).unwrap();
        let mut walked = Vec::new();
        let mut cursor: Option<KeyCursor> = None;
        loop {
            let keys = api_keys.fetch_api_keys_after(&tenant(), status, cursor.as_ref(), 30).unwrap();
            let Some(last) = keys.last() else { break };
            cursor = Some(last.into());
            walked.extend(keys);
            assert!(walked.len() < 1_000, "the walk runs in a circle");
        }
        assert_eq!(walked, all, "{status:?}");
        assert_eq!(
            api_keys.fetch_api_keys(&tenant(), status, Page { limit: 9, offset: 40 }).unwrap(),
            all.iter().skip(40).take(9).cloned().collect::<Vec<_>>()
        );
    }
    assert_eq!(api_keys.count_api_keys(&tenant(), None).unwrap(), 200);
}

#[test]
fn a_cursor_stays_valid_when_its_key_is_deleted() {
    let (_database, mut conn) = migrated();
    for id in ["a", "b", "c"] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    let first = KeysDriver::new(&mut conn).fetch_keys_after(&tenant(), None, 2).unwrap();
    let cursor = KeyCursor::from(&first[1]);
    conn.batch_execute("DELETE FROM api_keys WHERE id = 'b'").unwrap();
    let rest = KeysDriver::new(&mut conn).fetch_keys_after(&tenant(), Some(&cursor), 2).unwrap();
    assert_eq!(rest.into_iter().map(|key| key.id).collect::<Vec<_>>(), [key("a")]);
}

#[test]
fn a_limit_of_zero_is_an_empty_page() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    assert!(keys.fetch_keys_after(&tenant(), None, 0).unwrap().is_empty());
    assert!(keys.fetch_keys_after(&other(), None, u32::MAX).unwrap().is_empty());
}

/// Reads 100,000 keys in pages, while another session deletes some of them and inserts others everywhere in the list.
#[test]
fn paging_by_cursor_returns_unchanged_keys_once_while_others_change() {
    const KEYS: u32 = 100_000;
    let (database, mut conn) = migrated();
    insert_many(&mut conn, KEYS, 3);
    // Every fourth key may be deleted; the others stay.
    conn.batch_execute("UPDATE api_keys SET name = 'standing' WHERE key_hash::int % 4 <> 0").unwrap();

    let (walked, committed) = (AtomicBool::new(false), AtomicU32::new(0));
    let walks: Vec<Vec<KeyId>> = thread::scope(|scope| {
        let restless = scope.spawn(|| {
            let mut conn = database.connect().unwrap();
            // The second condition ends the test if the reader fails.
            for changes in (1..10_000).take_while(|_| !walked.load(Ordering::Relaxed)) {
                conn.batch_execute(&format!(
                    "DELETE FROM api_keys WHERE id IN (SELECT id FROM api_keys WHERE key_hash = '{0}');
                     INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, created_at)
                     VALUES ('new{changes}', '{TENANT}', 'passing', '', 'new{changes}',
                             timestamptz '2026-01-01 00:00:00Z' + {1} * interval '1 microsecond')",
                    changes * 4 % KEYS,
                    changes * 37 % (KEYS / 3),
                ))
                .unwrap();
                committed.store(changes, Ordering::Relaxed);
            }
        });
        let enough = || committed.load(Ordering::Relaxed) > 100 || restless.is_finished();
        let mut walks = Vec::new();
        while walks.len() < 3 || !enough() {
            walks.push(walk(&mut conn, 50));
        }
        walked.store(true, Ordering::Relaxed);
        restless.join().unwrap();
        walks
    });

    let standing = keys_named(&mut conn, "standing");
    assert_eq!(standing.len(), 75_000);
    for mut walked in walks {
        let met = walked.len();
        walked.sort_unstable();
        walked.dedup();
        assert_eq!(walked.len(), met, "a key was met twice");
        let missed: Vec<_> = standing.iter().filter(|id| walked.binary_search(id).is_err()).collect();
        assert!(missed.is_empty(), "{} keys were missed", missed.len());
    }
}

fn keys_named(conn: &mut PgConnection, name: &str) -> Vec<KeyId> {
    use api_keys_driver::schema::api_keys;
    api_keys::table.filter(api_keys::name.eq(name)).select(api_keys::id).load(conn).unwrap()
}

#[test]
fn a_bounded_count_is_exact_up_to_the_bound_and_never_above_it() {
    let (_database, mut conn) = migrated();
    insert_many(&mut conn, 30, 1);
    for (bound, all, shown, active) in [
        (0, 0, 0, 0),
        (1, 1, 1, 1),
        (10, 10, 10, 10),
        (29, 29, 20, 10),
        (30, 30, 20, 10),
        (u32::MAX, 30, 20, 10),
    ] {
        assert_eq!(KeysDriver::new(&mut conn).count_keys_up_to(&tenant(), bound).unwrap(), all, "{bound}");
        let mut api_keys = ApiKeysFacadeDriver::new(&mut conn);
        assert_eq!(api_keys.count_api_keys_up_to(&tenant(), None, bound).unwrap(), shown, "{bound}");
        assert_eq!(
            api_keys.count_api_keys_up_to(&tenant(), Some(&KeyStatus::Active), bound).unwrap(),
            active,
            "{bound}"
        );
        assert_eq!(api_keys.count_api_keys_up_to(&other(), None, bound).unwrap(), 0, "{bound}");
    }
}

#[test]
fn a_cursor_parses_from_its_own_text() {
    let epoch = at("1970-01-01T00:00:00Z");
    let times = [
        epoch,
        epoch - TimeDelta::microseconds(1),
        at("2026-01-01T00:00:00.000001Z"),
        at("9999-12-31T23:59:59.999999Z"),
        at("-4712-01-01T00:00:00Z"),
    ];
    for id in
        ["", "key", "0b9e6a54-13b5-4f6f-9d0e-2f6f0c6f8a11", "ключ", "🔑", "e\u{301}", "a b/c?d=%20&e", "\""]
    {
        for time in times {
            let cursor = KeyCursor::after(time, &id.into());
            let text = cursor.to_string();
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{text}");
            assert_eq!(text.parse::<KeyCursor>().unwrap(), cursor, "{text}");
        }
    }
    assert_eq!(
        KeyCursor::after(at("2026-01-01T00:00:00.000001999Z"), &key("key")),
        KeyCursor::after(at("2026-01-01T00:00:00.000001Z"), &key("key"))
    );
}

#[test]
fn a_text_that_is_not_a_cursor_is_refused() {
    let good = KeyCursor::after(at("2026-01-01T00:00:00Z"), &key("key")).to_string();
    let bad = [
        String::new(),
        " ".into(),
        good[..15].into(),
        good[..good.len() - 1].into(),
        format!("{good} "),
        format!(" {good}"),
        format!("{good}zz"),
        format!("{good}00"),
        format!("{good}ff"),
        good.to_uppercase(),
        format!("+{}", &good[1..]),
        "7fffffffffffffff".into(),
        "ключключключключ".into(),
    ];
    for text in bad {
        let refused = text.parse::<KeyCursor>().expect_err(&text);
        assert!(matches!(refused, Error::KeyCursor), "{text:?}");
        assert!(refused.to_string().contains("pass the text of a cursor unchanged"));
    }
}

#[test]
fn paging_by_cursor_returns_keys_with_times_out_of_range_once() {
    let (_database, mut conn) = migrated();
    let times = [
        "infinity",
        "294000-01-01",
        "262143-06-01",
        "9999-12-31",
        "0001-01-01",
        "4714-11-24 BC",
        "-infinity",
    ];
    for (time, index) in times.iter().zip(0..) {
        for tie in ["a", "z"] {
            // Of the times that Rust cannot tell apart, the later one has the smaller id.
            let id = format!("{index}{tie}");
            KeyRow { id: &id, ..KeyRow::default() }.insert(&mut conn);
            conn.batch_execute(&format!("UPDATE api_keys SET created_at = '{time}' WHERE id = '{id}'"))
                .unwrap();
        }
    }
    let expected: Vec<KeyId> =
        (0..times.len()).flat_map(|index| [key(&format!("{index}z")), key(&format!("{index}a"))]).collect();
    for limit in 1..=5 {
        assert_eq!(walk(&mut conn, limit), expected, "{limit} at a time");
    }
}

#[test]
fn a_cursor_before_every_time_is_the_end_of_the_list() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let cursor = KeyCursor::after(DateTime::<Utc>::MIN_UTC, &key("key"));
    assert_eq!(KeysDriver::new(&mut conn).fetch_keys_after(&tenant(), Some(&cursor), 50).unwrap(), []);
}

#[test]
fn a_page_after_a_cursor_is_read_in_the_order_of_its_index() {
    plans_of("fetch_keys_after").read(&["Index Scan using ix_api_keys_tenant_newest_first"]);
    // The cursor's own key is read from any index that has the keys of a small tenant.
    plans_of("fetch_keys_after.unknown_time")
        .or_read(&[
            "Index Scan using api_keys_pkey",
            "Index Only Scan using ix_api_keys_tenant_newest_first",
            "Index Only Scan using ix_api_keys_tenant_prefix",
        ])
        .read(&["Index Scan using ix_api_keys_tenant_newest_first"]);
}

#[test]
fn a_bounded_count_reads_the_index_only() {
    plans_of("count_keys_up_to").read(&["Index Only Scan using ix_api_keys_tenant_newest_first"]);
}
