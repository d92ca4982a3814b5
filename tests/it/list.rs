//! The list of all keys: pages, order and count. Cursors are in `paging.rs`.

use api_keys_driver::{KeysDriver, Page};
use diesel::prelude::*;

use crate::support::{KeyRow, OTHER, at, ids, migrated, plans_of, tenant};

const ALL: Page = Page { limit: u32::MAX, offset: 0 };

fn ids_of_page(conn: &mut PgConnection, page: Page) -> Vec<String> {
    ids(KeysDriver::new(conn).fetch_keys(&tenant(), page).unwrap())
}

#[test]
fn a_page_has_every_kind_of_key_of_the_tenant_and_no_others() {
    let (_database, mut conn) = migrated();
    KeyRow { id: "plain", created_at: at("2026-01-04T00:00:00Z"), ..KeyRow::default() }.insert(&mut conn);
    KeyRow {
        id: "synthetic",
        is_synthetic: true,
        created_at: at("2026-01-03T00:00:00Z"),
        ..KeyRow::default()
    }
    .insert(&mut conn);
    KeyRow { id: "frozen", is_frozen: true, created_at: at("2026-01-02T00:00:00Z"), ..KeyRow::default() }
        .insert(&mut conn);
    KeyRow { id: "revoked", status: "revoked", created_at: at("2026-01-01T00:00:00Z"), ..KeyRow::default() }
        .insert(&mut conn);
    KeyRow { id: "foreign", tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);

    assert_eq!(ids_of_page(&mut conn, Page::default()), ["plain", "synthetic", "frozen", "revoked"]);
    assert_eq!(KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap(), 4);
}

#[test]
fn keys_with_the_same_created_at_are_ordered_by_id_across_pages() {
    let (_database, mut conn) = migrated();
    for id in ["b", "d", "a", "c", "e"] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    KeyRow { id: "newer", created_at: at("2026-01-01T00:00:00.000001Z"), ..KeyRow::default() }
        .insert(&mut conn);

    let paged: Vec<String> =
        (0..3).flat_map(|page| ids_of_page(&mut conn, Page { limit: 2, offset: page * 2 })).collect();
    assert_eq!(paged, ["newer", "e", "d", "c", "b", "a"]);
}

#[test]
fn a_page_may_be_empty_deep_or_larger_than_the_tenant() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);

    assert_eq!(ids_of_page(&mut conn, ALL), ["key"]);
    assert!(ids_of_page(&mut conn, Page { limit: 0, offset: 0 }).is_empty());
    assert!(ids_of_page(&mut conn, Page { limit: 50, offset: 1 }).is_empty());
    assert!(ids_of_page(&mut conn, Page { limit: u32::MAX, offset: u32::MAX }).is_empty());
}

#[test]
fn a_tenant_without_keys_has_an_empty_page_and_a_count_of_zero() {
    let (_database, mut conn) = migrated();
    KeyRow { tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);

    assert!(ids_of_page(&mut conn, ALL).is_empty());
    assert_eq!(KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap(), 0);
}

#[test]
fn a_page_is_read_in_the_order_of_its_index() {
    plans_of("fetch_keys").read(&["Index Scan using ix_api_keys_tenant_newest_first"]);
    plans_of("fetch_keys.offset").read(&[
        "Index Only Scan using ix_api_keys_tenant_newest_first",
        "Index Scan using ix_api_keys_tenant_newest_first",
    ]);
}

#[test]
fn a_deep_page_reads_the_table_only_for_its_own_rows() {
    // 90,000 rows would be at least 1,000 blocks of the table.
    plans_of("fetch_keys").at_offset(90_000).read(&[
        "Index Only Scan using ix_api_keys_tenant_newest_first",
        "Index Scan using ix_api_keys_tenant_newest_first",
    ]);
}

#[test]
fn a_count_reads_the_index_only() {
    plans_of("count_keys").read(&["Index Only Scan using ix_api_keys_tenant_newest_first"]);
}
