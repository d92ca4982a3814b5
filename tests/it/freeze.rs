//! Freezing and unfreezing a key: the row, the events and the author.

use api_keys_driver::schema::api_keys;
use api_keys_driver::{Error, Freeze, KeyFreezeSnapshot, KeyUse, KeysDriver};
use chrono::TimeDelta;
use diesel::prelude::*;

use crate::support::{
    KeyRow, assert_fields, at, fetch, freeze, key, migrated, other, plans_of, revocation_of, statements_of,
    tenant, unfreeze, with, with_locked,
};

fn freeze_of(conn: &mut PgConnection) -> Option<KeyFreezeSnapshot> {
    KeysDriver::new(conn).fetch_key_freeze(&tenant(), &key("key")).unwrap()
}

#[test]
fn freezing_and_unfreezing_change_two_columns_and_return_the_row() {
    let (_database, mut conn) = migrated();
    KeyRow { total_requests: 7, status: "revoked", ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "bystander", ..KeyRow::default() }.insert(&mut conn);
    let before = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
    let bystander = |conn: &mut PgConnection| {
        KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key("bystander")).unwrap().unwrap()
    };
    let bystander_before = bystander(&mut conn);

    let now = at("2026-06-01T12:00:00.123456Z");
    let frozen = freeze(&mut conn, now);
    assert_eq!(
        frozen,
        with!(before.clone(), is_frozen: true, frozen_at: Some(now), revision: before.revision + 1)
    );
    let stored = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap();
    assert_eq!(stored, Some(frozen));
    assert_eq!(bystander(&mut conn), bystander_before);

    let later = now + TimeDelta::microseconds(1);
    assert_eq!(freeze(&mut conn, later).frozen_at, Some(later));

    let before = with!(before.clone(), revision: before.revision + 3);
    assert_eq!(unfreeze(&mut conn), before);
    let stored = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap();
    assert_eq!(stored, Some(before));
    assert_eq!(bystander(&mut conn), bystander_before);
}

#[test]
fn the_time_of_a_freeze_is_truncated_to_microseconds() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let frozen = freeze(&mut conn, at("2026-06-01T12:00:00.123456999Z"));
    assert_eq!(frozen.frozen_at, Some(at("2026-06-01T12:00:00.123456Z")));
}

#[test]
fn a_freeze_has_author_time_and_reason_until_the_next_freeze_or_unfreeze() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let noon = at("2026-06-01T12:00:00Z");
    assert_eq!(freeze_of(&mut conn), None);

    let freeze = Freeze { at: noon, by: "ops", reason: Some("odd traffic") };
    let before = fetch(&mut conn, "key");
    let frozen = with_locked(&mut conn, |keys, key| keys.update_key_frozen_by(key, &freeze)).unwrap();
    assert_eq!(
        frozen,
        with!(before.clone(), is_frozen: true, frozen_at: Some(noon), revision: before.revision + 1)
    );
    assert_fields!(
        freeze_of(&mut conn).unwrap(),
        frozen_at: Some(noon), frozen_by: Some("ops".into()), freeze_reason: Some("odd traffic".into()),
    );

    let freeze = Freeze { at: noon, by: "billing", reason: None };
    with_locked(&mut conn, |keys, key| keys.update_key_frozen_by(key, &freeze)).unwrap();
    let billing = freeze_of(&mut conn).unwrap();
    assert_eq!((billing.frozen_by, billing.freeze_reason), (Some("billing".into()), None));

    let later = noon + TimeDelta::hours(1);
    with_locked(&mut conn, |keys, key| keys.update_key_frozen(key, later)).unwrap();
    assert_fields!(
        freeze_of(&mut conn).unwrap(),
        frozen_at: Some(later), frozen_by: None, freeze_reason: None,
    );

    with_locked(&mut conn, |keys, key| keys.update_key_frozen_by(key, &freeze)).unwrap();
    let unfrozen = unfreeze(&mut conn);
    assert_eq!(unfrozen, with!(before, revision: unfrozen.revision));
    let columns = (api_keys::frozen_by, api_keys::freeze_reason);
    let cleared: (Option<String>, Option<String>) =
        api_keys::table.select(columns).get_result(&mut conn).unwrap();
    assert_eq!(cleared, (None, None));
}

#[test]
fn a_frozen_by_that_is_too_long_is_refused_before_it_is_sent() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let (now, who, why) = (at("2026-06-01T12:00:00Z"), "ß".repeat(101), "ß".repeat(256));
    let freeze = Freeze { at: now, by: &who, reason: None };

    let (refused, sent) = statements_of(&mut conn, |conn| {
        with_locked(conn, |keys, key| keys.update_key_frozen_by(key, &freeze))
    });
    assert!(matches!(refused, Err(Error::TooLong { column: "frozen_by", limit: 100 })), "{refused:?}");
    assert!(sent.iter().all(|sql| !sql.contains("UPDATE \"api_keys\"")), "{sent:#?}");

    let freeze = Freeze { at: now, by: &who["ß".len()..], reason: Some(&why) };
    with_locked(&mut conn, |keys, key| keys.update_key_frozen_by(key, &freeze)).unwrap();
    assert_eq!(freeze_of(&mut conn).unwrap().frozen_by.unwrap().chars().count(), 100);
}

#[test]
fn a_missing_key_and_a_foreign_one_have_no_freeze() {
    let (_database, mut conn) = migrated();
    KeyRow { is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    assert_eq!(keys.fetch_key_freeze(&tenant(), &key("missing")).unwrap(), None);
    assert_eq!(keys.fetch_key_freeze(&other(), &key("key")).unwrap(), None);
    assert!(keys.fetch_key_freeze(&tenant(), &key("key")).unwrap().is_some());
}

#[test]
fn only_an_unfreeze_ends_a_freeze_and_a_revoked_key_stays_revoked() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let now = at("2026-06-01T12:00:00Z");
    let freeze = Freeze { at: now, by: "ops", reason: Some("odd traffic") };
    with_locked(&mut conn, |keys, key| keys.update_key_frozen_by(key, &freeze)).unwrap();
    let frozen = freeze_of(&mut conn);
    assert!(frozen.is_some());

    let used = KeyUse { tenant_id: tenant(), key_id: key("key"), count: 1, at: now };
    assert_eq!(KeysDriver::new(&mut conn).record_key_uses(&[used]).unwrap(), 1);
    assert_eq!(freeze_of(&mut conn), frozen, "after a use");
    with_locked(&mut conn, |keys, key| keys.update_key_expires_at(key, Some(now))).unwrap();
    assert_eq!(freeze_of(&mut conn), frozen, "after an expiry was set");
    with_locked(&mut conn, |keys, key| keys.update_key_revoked(key, now, None)).unwrap();
    assert_eq!(freeze_of(&mut conn), frozen, "after a revocation");

    let unfrozen = unfreeze(&mut conn);
    assert_eq!((unfrozen.is_frozen, unfrozen.status.as_str()), (false, "revoked"));
    assert_eq!(revocation_of(&mut conn, "key"), (Some(now), None));
}

#[test]
fn a_freeze_finds_its_row_by_the_primary_key() {
    for name in ["update_key_frozen", "update_key_frozen_by", "update_key_unfrozen", "fetch_key_freeze"] {
        plans_of(name).read(&["Index Scan using api_keys_pkey"]);
    }
}
