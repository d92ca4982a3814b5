//! When keys expire. A rotation, which builds on it, is in `successor.rs`.

use api_keys_driver::{KeysDriver, Page};
use chrono::TimeDelta;

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
fn keys_expiring_before_a_moment_are_active_ones_soonest_first() {
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

    let mut page = |page| ids(keys.fetch_keys_expiring(&tenant(), before, page).unwrap());
    assert_eq!(page(Page::default()), ["past", "tie-a", "tie-b", "just"]);
    assert_eq!(page(Page { limit: 2, offset: 1 }), ["tie-a", "tie-b"]);
    assert!(page(Page { limit: 0, offset: 0 }).is_empty());
}

#[test]
fn setting_an_expiry_finds_its_row_by_the_primary_key() {
    plans_of("update_key_expires_at").read(&["Index Scan using api_keys_pkey"]);
}

#[test]
fn expiring_keys_are_read_in_the_order_of_their_index() {
    let index = "Index Scan using ix_api_keys_tenant_status_expiry";
    plans_of("fetch_keys_expiring").of_large_tenants().planned_for_each_call().read(&[index]);
}
