//! Listing the keys that were not used recently.

use api_keys_driver::{KeysDriver, UnusedCursor};
use chrono::TimeDelta;

use crate::support::{KeyRow, OTHER, at, ids, migrated, plans_of, tenant};

#[test]
fn keys_unused_since_a_time_are_active_and_in_order_of_last_use() {
    let (_database, mut conn) = migrated();
    let since = at("2026-06-01T00:00:00Z");
    let (old, ago) = (at("2026-01-01T00:00:00Z"), |hours| Some(since - TimeDelta::hours(hours)));
    let row = KeyRow { created_at: old, ..KeyRow::default() };
    KeyRow { id: "used long ago", last_used_at: ago(48), ..row.clone() }.insert(&mut conn);
    KeyRow { id: "tie-b", last_used_at: ago(24), is_frozen: true, ..row.clone() }.insert(&mut conn);
    KeyRow { id: "tie-a", last_used_at: ago(24), is_synthetic: true, ..row.clone() }.insert(&mut conn);
    KeyRow { id: "never used", ..row.clone() }.insert(&mut conn);
    KeyRow { id: "new", created_at: since, ..row.clone() }.insert(&mut conn);
    KeyRow { id: "used at the moment", last_used_at: Some(since), ..row.clone() }.insert(&mut conn);
    KeyRow { id: "revoked", status: "revoked", ..row.clone() }.insert(&mut conn);
    KeyRow { id: "foreign", tenant_id: OTHER, ..row.clone() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);

    let mut page = |cursor: Option<&UnusedCursor>, limit| {
        keys.fetch_keys_unused(&tenant(), since, cursor, limit).unwrap()
    };
    let all = page(None, u32::MAX);
    let cursor = UnusedCursor::from(&all[0]);
    assert_eq!(ids(page(Some(&cursor), 2)), ["used long ago", "tie-a"]);
    assert_eq!(ids(page(Some(&UnusedCursor::from(&all[2])), 2)), ["tie-b"]);
    assert_eq!(ids(all), ["never used", "used long ago", "tie-a", "tie-b"]);
    assert!(page(None, 0).is_empty());
}

#[test]
fn unused_keys_are_found_among_the_tenants_active_keys() {
    for name in ["fetch_keys_unused", "fetch_keys_unused.cursor"] {
        plans_of(name)
            .of_a_small_tenant()
            .planned_for_each_call()
            .read_in_vain()
            .sort_by(&["Sort Key: (COALESCE(api_keys.last_used_at, api_keys.created_at)), api_keys.id"])
            // PostgreSQL 18 may skip through an index of the existing service whose second column is the tenant.
            .or_read(&[
                "Bitmap Heap Scan on api_keys",
                "ix_api_keys_tenant_status_expiry",
                "ix_api_keys_is_frozen",
            ])
            .read(&["((tenant_id)::text = "]);
    }
}
