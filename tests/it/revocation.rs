//! Revoking one key, and all keys of a tenant.

use api_keys_driver::{Error, KeyStatus, KeysDriver, Page};
use chrono::TimeDelta;
use diesel::prelude::*;

use crate::support::{
    KeyRow, OTHER, at, fetch, key, migrated, other, plans_of, revocation_of, statements_of, tenant, with,
    with_locked,
};

fn events_of(conn: &mut PgConnection, id: &str) -> usize {
    KeysDriver::new(conn).fetch_key_events(&tenant(), &key(id), Page::default()).unwrap().len()
}

#[test]
fn a_second_revocation_changes_nothing() {
    let (_database, mut conn) = migrated();
    KeyRow { is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    let before = fetch(&mut conn, "key");
    let first = at("2026-06-01T12:00:00Z");
    let revoked = with_locked(&mut conn, |keys, key| keys.update_key_revoked(key, first, Some("leaked")));
    let revoked = revoked.unwrap();
    assert_eq!(revoked, with!(before, status: KeyStatus::Revoked, revision: revoked.revision));
    assert_eq!(revocation_of(&mut conn, "key"), (Some(first), Some("leaked".into())));

    let events = events_of(&mut conn, "key");
    let later = first + TimeDelta::days(1);
    let again = with_locked(&mut conn, |keys, key| keys.update_key_revoked(key, later, Some("again")));
    assert_eq!(again.unwrap(), revoked);
    assert_eq!(revocation_of(&mut conn, "key"), (Some(first), Some("leaked".into())));
    assert_eq!(events_of(&mut conn, "key"), events);
}

#[test]
fn a_second_revocation_by_a_lock_read_before_the_first_changes_nothing() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let first = at("2026-06-01T12:00:00Z");
    with_locked(&mut conn, |keys, locked| {
        let second = keys.fetch_key_for_update(&tenant(), &key("key"))?.unwrap();
        keys.update_key_revoked(locked, first, None)?;
        keys.update_key_revoked(second, first + TimeDelta::days(1), Some("again"))
    })
    .unwrap();
    assert_eq!(revocation_of(&mut conn, "key"), (Some(first), None));
}

#[test]
fn a_revoked_reason_that_is_too_long_is_refused_before_it_is_sent() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let (now, long) = (at("2026-06-01T12:00:00Z"), "ß".repeat(256));

    let (refused, sent) = statements_of(&mut conn, |conn| {
        let one = with_locked(conn, |keys, key| keys.update_key_revoked(key, now, Some(&long)));
        let all = KeysDriver::new(conn).update_all_keys_revoked(&tenant(), now, Some(&long));
        [one.unwrap_err(), all.unwrap_err()]
    });
    for error in refused {
        assert!(matches!(error, Error::TooLong { column: "revoked_reason", limit: 255 }), "{error:?}");
    }
    assert!(sent.iter().all(|sql| !sql.contains("UPDATE \"api_keys\"")), "{sent:#?}");

    let fits = &long["ß".len()..];
    with_locked(&mut conn, |keys, key| keys.update_key_revoked(key, now, Some(fits))).unwrap();
    assert_eq!(revocation_of(&mut conn, "key").1.unwrap().chars().count(), 255);
}

#[test]
fn revoking_all_keys_leaves_the_first_revocations_as_they_were() {
    let (_database, mut conn) = migrated();
    let (first, later) = (at("2026-06-01T12:00:00Z"), at("2026-07-01T12:00:00Z"));
    KeyRow { id: "active", ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "frozen", is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "expired", status: "expired", ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "revoked", status: "revoked", revoked_at: Some(first), ..KeyRow::default() }
        .insert(&mut conn);
    KeyRow { id: "foreign", tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);

    assert_eq!(keys.update_all_keys_revoked(&tenant(), later, Some("left")).unwrap(), 3);
    assert_eq!(keys.update_all_keys_revoked(&tenant(), later, Some("left again")).unwrap(), 0);
    assert_eq!(keys.update_all_keys_revoked(&"nobody".into(), later, None).unwrap(), 0);

    let counts = |of: &[(&str, i64)]| of.iter().map(|(status, n)| ((*status).into(), *n)).collect();
    assert_eq!(keys.count_keys_by_status(&tenant()).unwrap(), counts(&[("revoked", 4)]));
    assert_eq!(keys.count_keys_by_status(&other()).unwrap(), counts(&[("active", 1)]));
    assert!(fetch(&mut conn, "frozen").is_frozen);
    for id in ["active", "frozen", "expired"] {
        assert_eq!(revocation_of(&mut conn, id), (Some(later), Some("left".into())), "{id}");
    }
    assert_eq!(revocation_of(&mut conn, "revoked"), (Some(first), None));
}

#[test]
fn a_revocation_finds_its_row_by_the_primary_key() {
    plans_of("update_key_revoked").read(&["Index Scan using api_keys_pkey"]);
}

#[test]
fn the_keys_of_a_tenant_are_locked_in_the_order_of_their_ids() {
    plans_of("update_all_keys_revoked")
        .of_a_small_tenant()
        .sort_by(&["Sort Key: api_keys_1.id"])
        .or_read(&[
            "Bitmap Heap Scan on api_keys",
            "Index Scan using api_keys_pkey",
            "ix_api_keys_tenant_",
            "ix_api_keys_is_frozen",
        ])
        .planned_for_each_call()
        // PostgreSQL 18 may skip through an index of the existing service whose second column is the tenant.
        .read(&["LockRows", "((tenant_id)::text = "]);
}
