//! Setting when keys expire, and listing the keys that expire next. Rotations are in `successor.rs`.

use api_keys_driver::{ExpiryCursor, KeyCursor, KeysDriver, UnusedCursor};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::support::{KeyRow, OTHER, at, fetch, ids, migrated, plans_of, tenant, with, with_locked};

#[test]
fn setting_and_clearing_an_expiry_changes_nothing_else() {
    let (_database, mut conn) = migrated();
    KeyRow { status: "revoked", is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    let before = fetch(&mut conn, "key");
    let expiry = Some(at("2026-06-01T12:00:00.000001Z"));
    let expiring = with_locked(&mut conn, |keys, key| keys.update_key_expires_at(key, expiry)).unwrap();
    assert_eq!(expiring, with!(before.clone(), expires_at: expiry, revision: before.revision + 1));
    let never = with_locked(&mut conn, |keys, key| keys.update_key_expires_at(key, None)).unwrap();
    assert_eq!(never, with!(before, revision: never.revision));
}

#[test]
fn keys_expiring_before_a_time_are_active_and_in_order_of_expiry() {
    let (_database, mut conn) = migrated();
    let before = at("2026-06-01T00:00:00Z");
    let sooner = |hours| Some(before - TimeDelta::hours(hours));
    KeyRow { id: "past", expires_at: sooner(99_999), ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "tie-b", expires_at: sooner(2), is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "tie-a", expires_at: sooner(2), is_synthetic: true, ..KeyRow::default() }.insert(&mut conn);
    let just = Some(before - TimeDelta::microseconds(1));
    KeyRow { id: "just", expires_at: just, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "at the moment", expires_at: Some(before), ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "never", ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "revoked", status: "revoked", expires_at: sooner(1), ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "expired", status: "expired", expires_at: sooner(1), ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "foreign", tenant_id: OTHER, expires_at: sooner(1), ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);

    let mut page = |cursor: Option<&ExpiryCursor>, limit| {
        keys.fetch_keys_expiring(&tenant(), before, cursor, limit).unwrap()
    };
    let all = page(None, u32::MAX);
    assert_eq!(ids(page(Some(&ExpiryCursor::from(&all[0])), 2)), ["tie-a", "tie-b"]);
    assert_eq!(ids(page(Some(&ExpiryCursor::from(&all[1])), 2)), ["tie-b", "just"]);
    assert_eq!(ids(all), ["past", "tie-a", "tie-b", "just"]);
    assert!(page(None, 0).is_empty());
}

#[test]
fn setting_an_expiry_finds_its_row_by_the_primary_key() {
    plans_of("update_key_expires_at").read(&["Index Scan using api_keys_pkey"]);
}

#[test]
fn expiring_keys_are_read_in_the_order_of_their_index() {
    let index = "Index Scan using ix_api_keys_tenant_status_expiry";
    plans_of("fetch_keys_expiring").of_large_tenants().read(&[index]);
    plans_of("fetch_keys_expiring.cursor").of_large_tenants().read(&[index]);
}

#[test]
fn a_loop_that_revokes_expiring_keys_handles_every_key() {
    let (_database, mut conn) = migrated();
    let now = at("2026-06-01T00:00:00Z");
    for n in 0..250 {
        let (id, expires_at) = (format!("key {n}"), Some(now - TimeDelta::minutes(n / 2)));
        KeyRow { id: &id, expires_at, ..KeyRow::default() }.insert(&mut conn);
    }
    let mut cursor = None;
    loop {
        let page = KeysDriver::new(&mut conn).fetch_keys_expiring(
            &tenant(),
            now + TimeDelta::days(1),
            cursor.as_ref(),
            7,
        );
        let page = page.unwrap();
        let Some(last) = page.last() else { break };
        cursor = Some(ExpiryCursor::from(last));
        for key in page {
            conn.transaction(|conn| {
                let mut keys = KeysDriver::new(conn);
                let key = keys.fetch_key_for_update(&tenant(), &key.id)?.expect("a key");
                keys.update_key_revoked(key, now, None)
            })
            .unwrap();
        }
    }
    let left = KeysDriver::new(&mut conn).count_keys_by_status(&tenant()).unwrap();
    assert_eq!(left.into_iter().collect::<Vec<_>>(), [("revoked".into(), 250)]);
}

#[test]
fn keys_with_an_expiry_out_of_range_are_returned_once() {
    let (_database, mut conn) = migrated();
    for (id, expires_at) in [
        ("a", "-infinity"),
        ("b", "262142-12-31 23:59:59.999999Z"),
        ("d", "280000-01-01Z"),
        ("c", "290000-01-01Z"),
        ("e", "infinity"),
    ] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
        let set = format!("UPDATE api_keys SET expires_at = '{expires_at}' WHERE id = '{id}'");
        conn.batch_execute(&set).unwrap();
    }
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let before = DateTime::<Utc>::MAX_UTC;
        let page = KeysDriver::new(&mut conn).fetch_keys_expiring(&tenant(), before, cursor.as_ref(), 1);
        let page = page.unwrap();
        let Some(last) = page.last() else { break };
        cursor = Some(ExpiryCursor::from(last));
        all.extend(ids(page));
        assert!(all.len() < 9, "{all:?}");
    }
    assert_eq!(all, ["a", "b", "d", "c"], "infinity is not before itself");
}

#[test]
fn the_text_of_a_cursor_parses_only_as_the_same_kind_of_cursor() {
    let (_database, mut conn) = migrated();
    let times = [None, Some(at("1969-12-31T23:59:59.999999Z")), Some(at("2026-06-01T00:00:00.000001Z"))];
    for (index, time) in times.into_iter().enumerate() {
        let id = format!("kéy {index}");
        KeyRow { id: &id, expires_at: time, last_used_at: time, ..KeyRow::default() }.insert(&mut conn);
        let key = fetch(&mut conn, &id);
        let (expiry, unused) = (ExpiryCursor::from(&key), UnusedCursor::from(&key));
        assert_eq!(expiry.to_string().parse::<ExpiryCursor>().unwrap(), expiry);
        assert_eq!(unused.to_string().parse::<UnusedCursor>().unwrap(), unused);
        assert!(unused.to_string().parse::<ExpiryCursor>().is_err());
        assert!(expiry.to_string().parse::<UnusedCursor>().is_err());
        assert!(expiry.to_string().parse::<KeyCursor>().is_err());
        assert!(KeyCursor::from(&key).to_string().parse::<ExpiryCursor>().is_err());
    }
}
