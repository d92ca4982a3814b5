//! The customer's view.

use api_keys_driver::{ApiKeysFacadeDriver, KeyStatus, Page};
use diesel::prelude::*;

use crate::support::{KeyRow, OTHER, assert_fields, at, key, migrated, other, plans_of, tenant};

/// An active, a revoked and two expired keys of the tenant, newest first, among synthetic keys and keys of other
/// tenants.
fn insert_keys(conn: &mut PgConnection) {
    let keys = [
        KeyRow { id: "active", created_at: at("2026-01-05T00:00:00Z"), is_frozen: true, ..KeyRow::default() },
        KeyRow {
            id: "hidden",
            created_at: at("2026-01-04T00:00:00Z"),
            is_synthetic: true,
            ..KeyRow::default()
        },
        KeyRow {
            id: "revoked",
            created_at: at("2026-01-03T00:00:00Z"),
            status: "revoked",
            ..KeyRow::default()
        },
        KeyRow {
            id: "expired-b",
            created_at: at("2026-01-02T00:00:00Z"),
            status: "expired",
            ..KeyRow::default()
        },
        KeyRow {
            id: "expired-a",
            created_at: at("2026-01-02T00:00:00Z"),
            status: "expired",
            ..KeyRow::default()
        },
        KeyRow { id: "foreign", tenant_id: OTHER, ..KeyRow::default() },
    ];
    for key in keys {
        key.insert(conn);
    }
}

fn ids(conn: &mut PgConnection, status: Option<&str>, page: Page) -> Vec<String> {
    let status = status.map(KeyStatus::from);
    let keys = ApiKeysFacadeDriver::new(conn).fetch_api_keys(&tenant(), status.as_ref(), page).unwrap();
    keys.into_iter().map(|key| key.id.into()).collect()
}

#[test]
fn a_page_has_the_keys_that_are_not_synthetic_newest_first() {
    let (_database, mut conn) = migrated();
    insert_keys(&mut conn);
    assert_eq!(ids(&mut conn, None, Page::default()), ["active", "revoked", "expired-b", "expired-a"]);
    assert_eq!(ids(&mut conn, None, Page { limit: 2, offset: 1 }), ["revoked", "expired-b"]);
    assert!(ids(&mut conn, None, Page { limit: 0, offset: 0 }).is_empty());
    assert!(ids(&mut conn, None, Page { limit: u32::MAX, offset: u32::MAX }).is_empty());
}

#[test]
fn a_status_is_matched_exactly_as_stored() {
    let (_database, mut conn) = migrated();
    insert_keys(&mut conn);
    let cases: [(&str, &[&str]); 7] = [
        ("active", &["active"]),
        ("revoked", &["revoked"]),
        ("expired", &["expired-b", "expired-a"]),
        ("Active", &[]),
        ("active ", &[]),
        ("", &[]),
        ("act%", &[]),
    ];
    for (status, expected) in cases {
        assert_eq!(ids(&mut conn, Some(status), Page::default()), expected, "{status:?}");
        let count =
            ApiKeysFacadeDriver::new(&mut conn).count_api_keys(&tenant(), Some(&status.into())).unwrap();
        assert_eq!(usize::try_from(count).unwrap(), expected.len(), "{status:?}");
    }
}

#[test]
fn a_count_and_the_pages_leave_out_the_same_keys() {
    let (_database, mut conn) = migrated();
    insert_keys(&mut conn);
    let mut api_keys = ApiKeysFacadeDriver::new(&mut conn);
    assert_eq!(api_keys.count_api_keys(&tenant(), None).unwrap(), 4);
    assert_eq!(api_keys.count_api_keys(&other(), None).unwrap(), 1);
    assert_eq!(api_keys.count_api_keys(&"nobody".into(), None).unwrap(), 0);
}

#[test]
fn synthetic_missing_and_foreign_keys_are_none() {
    let (_database, mut conn) = migrated();
    insert_keys(&mut conn);
    let mut api_keys = ApiKeysFacadeDriver::new(&mut conn);
    for id in ["hidden", "missing", "foreign"] {
        assert_eq!(api_keys.fetch_api_key_by_id(&tenant(), &key(id)).unwrap(), None, "{id}");
    }
    assert!(api_keys.fetch_api_key_by_id(&other(), &key("foreign")).unwrap().is_some());
}

#[test]
fn every_field_of_both_snapshots_is_what_the_row_holds() {
    let (_database, mut conn) = migrated();
    KeyRow {
        name: "Ключ",
        status: "revoked",
        permissions_json: Some("[\"chat\", not json"),
        allowed_workers_json: Some(""),
        rate_limit_rpm: Some(i32::MAX),
        max_concurrent_runs: Some(-1),
        created_at: at("2026-01-01T00:00:00.000001Z"),
        last_used_at: Some(at("2026-01-02T00:00:00.000002Z")),
        expires_at: Some(at("2026-01-03T00:00:00.000003Z")),
        revoked_at: Some(at("2026-01-04T00:00:00.000004Z")),
        revoked_reason: Some("leaked"),
        total_requests: 42,
        ..KeyRow::default()
    }
    .insert(&mut conn);
    let mut api_keys = ApiKeysFacadeDriver::new(&mut conn);

    let listed = api_keys.fetch_api_keys(&tenant(), None, Page::default()).unwrap();
    assert_eq!(listed.len(), 1);
    assert_fields!(
        listed[0],
            id: key("key"),
            name: "Ключ".into(),
            key_prefix: "sk-live-abcd".into(),
            status: "revoked".into(),
            created_at: at("2026-01-01T00:00:00.000001Z"),
            last_used_at: Some(at("2026-01-02T00:00:00.000002Z")),
            expires_at: Some(at("2026-01-03T00:00:00.000003Z")),
            total_requests: 42,
            is_synthetic: false,
    );
    let detail = api_keys.fetch_api_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
    assert_fields!(
        detail,
            id: key("key"),
            name: "Ключ".into(),
            key_prefix: "sk-live-abcd".into(),
            status: "revoked".into(),
            created_at: at("2026-01-01T00:00:00.000001Z"),
            last_used_at: Some(at("2026-01-02T00:00:00.000002Z")),
            expires_at: Some(at("2026-01-03T00:00:00.000003Z")),
            total_requests: 42,
            permissions_json: Some("[\"chat\", not json".into()),
            allowed_workers_json: Some(String::new()),
            rate_limit_rpm: Some(i32::MAX),
            max_concurrent_runs: Some(-1),
            revoked_at: Some(at("2026-01-04T00:00:00.000004Z")),
            revoked_reason: Some("leaked".into()),
    );
}

#[test]
fn null_is_none() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let detail =
        ApiKeysFacadeDriver::new(&mut conn).fetch_api_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
    assert_eq!((detail.last_used_at, detail.expires_at, detail.revoked_at), (None, None, None));
    assert_eq!(
        (detail.permissions_json, detail.allowed_workers_json, detail.revoked_reason),
        (None, None, None)
    );
    assert_eq!((detail.rate_limit_rpm, detail.max_concurrent_runs), (None, None));
}

#[test]
fn each_page_is_read_in_the_order_of_its_partial_index() {
    plans_of("fetch_api_keys").read(&["Index Scan using ix_api_keys_tenant_shown_newest_first"]);
    plans_of("fetch_api_keys.offset").read(&[
        "Index Only Scan using ix_api_keys_tenant_shown_newest_first",
        "Index Scan using ix_api_keys_tenant_shown_newest_first",
    ]);
    plans_of("fetch_api_keys_after").read(&["Index Scan using ix_api_keys_tenant_shown_newest_first"]);
    plans_of("fetch_api_keys.status").read(&["Index Scan using ix_api_keys_tenant_status_newest_first"]);
    plans_of("fetch_api_keys.status_offset").read(&[
        "Index Only Scan using ix_api_keys_tenant_status_newest_first",
        "Index Scan using ix_api_keys_tenant_status_newest_first",
    ]);
    plans_of("fetch_api_keys_after.status")
        .read(&["Index Scan using ix_api_keys_tenant_status_newest_first"]);
}

#[test]
fn each_count_reads_its_partial_index_only() {
    plans_of("count_api_keys").read(&["Index Only Scan using ix_api_keys_tenant_shown_newest_first"]);
    plans_of("count_api_keys_up_to").read(&["Index Only Scan using ix_api_keys_tenant_shown_newest_first"]);
    plans_of("count_api_keys.status").read(&["Index Only Scan using ix_api_keys_tenant_status_newest_first"]);
    plans_of("count_api_keys_up_to.status")
        .read(&["Index Only Scan using ix_api_keys_tenant_status_newest_first"]);
}

#[test]
fn the_detail_of_a_key_is_found_by_the_primary_key() {
    plans_of("fetch_api_key_by_id").read(&["Index Scan using api_keys_pkey"]);
}
