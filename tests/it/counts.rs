//! Counts by status. Counts of a list are in `list.rs`, those with a bound in `paging.rs`.

use std::collections::BTreeMap;

use api_keys_driver::KeysDriver;

use crate::support::{KeyRow, OTHER, migrated, plans_of, tenant};

#[test]
fn counts_by_status_include_every_kind_of_key_and_add_up() {
    let (_database, mut conn) = migrated();
    for (id, status, is_synthetic) in
        [("a", "active", true), ("b", "active", false), ("c", "revoked", false), ("d", "Odd one", false)]
    {
        KeyRow { id, status, is_synthetic, ..KeyRow::default() }.insert(&mut conn);
    }
    KeyRow { id: "foreign", tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    let counts = keys.count_keys_by_status(&tenant()).unwrap();
    let expected = [("active", 2), ("revoked", 1), ("Odd one", 1)].map(|(status, n)| (status.into(), n));
    assert_eq!(counts, BTreeMap::from(expected));
    assert_eq!(counts.values().sum::<i64>(), keys.count_keys(&tenant()).unwrap());
    assert!(keys.count_keys_by_status(&"nobody".into()).unwrap().is_empty());
}

#[test]
fn a_count_by_status_reads_the_index_only() {
    plans_of("count_keys_by_status")
        .planned_for_each_call()
        .read(&["Index Only Scan using ix_api_keys_tenant_status_expiry"]);
}
