//! What an engine does to a key between its insertion and its revocation.

use std::collections::BTreeMap;
use std::error::Error as _;

use api_keys_driver::schema::api_keys;
use api_keys_driver::{
    ApiKeysFacadeDriver, Error, Freeze, KeyFreezeSnapshot, KeyHash, KeyId, KeySnapshot, KeyStatus, KeyUse,
    KeysDriver, NewKey, Page, Result,
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::keys_driver::{unfreeze, with_locked};
use crate::support::{
    KeyRow, OTHER, TENANT, assert_fields, at, key, migrated, other, statements_of, tenant, with,
};

pub(crate) fn new_key(id: &str) -> NewKey {
    NewKey::new(tenant(), key(id), "Production", "sk-live-abcd", id.into(), at("2026-01-01T00:00:00Z"))
}

pub(crate) fn fetch(conn: &mut PgConnection, id: &str) -> KeySnapshot {
    KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key(id)).unwrap().unwrap()
}

fn freeze_of(conn: &mut PgConnection) -> Option<KeyFreezeSnapshot> {
    KeysDriver::new(conn).fetch_key_freeze(&tenant(), &key("key")).unwrap()
}

fn events_of(conn: &mut PgConnection, id: &str) -> usize {
    KeysDriver::new(conn).fetch_key_events(&tenant(), &key(id), Page::default()).unwrap().len()
}

/// When and why a key was revoked.
fn revocation_of(conn: &mut PgConnection, id: &str) -> (Option<DateTime<Utc>>, Option<String>) {
    let key = ApiKeysFacadeDriver::new(conn).fetch_api_key_by_id(&tenant(), &key(id)).unwrap().unwrap();
    (key.revoked_at, key.revoked_reason)
}

#[test]
fn a_new_key_is_stored_with_every_column_and_recognised_by_its_hash() {
    let (_database, mut conn) = migrated();
    let new = NewKey {
        user_id: Some("user".into()),
        permissions_json: Some("[\"chat\", not json".into()),
        allowed_workers_json: Some(String::new()),
        rate_limit_rpm: Some(60),
        max_concurrent_runs: Some(-1),
        status: "expired".into(),
        expires_at: Some(at("2026-04-01T00:00:00.000001Z")),
        is_synthetic: true,
        synthetic_scenario_id: Some("scenario".into()),
        ..new_key("key")
    };
    let mut keys = KeysDriver::new(&mut conn);

    let stored = keys.insert_key(&new).unwrap();
    assert_fields!(
        stored,
            id: key("key"),
            tenant_id: tenant(),
            name: "Production".into(),
            key_prefix: "sk-live-abcd".into(),
            status: "expired".into(),
            is_frozen: false,
            frozen_at: None,
            created_at: at("2026-01-01T00:00:00Z"),
            last_used_at: None,
            expires_at: Some(at("2026-04-01T00:00:00.000001Z")),
            total_requests: 0,
            is_synthetic: true,
            revision: 1,
    );
    assert_fields!(
        keys.fetch_key_by_hash(&KeyHash::from("key")).unwrap().unwrap(),
            id: key("key"),
            tenant_id: tenant(),
            status: "expired".into(),
            is_frozen: false,
            expires_at: Some(at("2026-04-01T00:00:00.000001Z")),
            revoked_at: None,
            permissions_json: Some("[\"chat\", not json".into()),
            allowed_workers_json: Some(String::new()),
            rate_limit_rpm: Some(60),
            max_concurrent_runs: Some(-1),
            is_synthetic: true,
            revision: 1,
    );
    let rest = api_keys::table
        .select((api_keys::user_id, api_keys::synthetic_scenario_id))
        .get_result::<(Option<String>, Option<String>)>(&mut conn)
        .unwrap();
    assert_eq!(rest, (Some("user".into()), Some("scenario".into())));
}

#[test]
fn what_a_new_key_leaves_out_is_null() {
    let (_database, mut conn) = migrated();
    let mut keys = KeysDriver::new(&mut conn);
    keys.insert_key(&new_key("key")).unwrap();
    let auth = keys.fetch_key_by_hash(&KeyHash::from("key")).unwrap().unwrap();
    assert_eq!((auth.expires_at, auth.revoked_at), (None, None));
    assert_eq!((auth.permissions_json, auth.allowed_workers_json), (None, None));
    assert_eq!((auth.rate_limit_rpm, auth.max_concurrent_runs), (None, None));
    assert_eq!((auth.status.as_str(), auth.is_synthetic), ("active", false));
}

#[test]
fn an_id_and_a_hash_that_exist_are_named_whichever_tenant_has_them() {
    let (_database, mut conn) = migrated();
    KeyRow { id: "taken", key_hash: Some("5ec2e7"), tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);

    let by_id = keys.insert_key(&NewKey { id: key("taken"), ..new_key("key") }).unwrap_err();
    assert!(matches!(&by_id, Error::KeyExists(id) if *id == key("taken")), "{by_id:?}");
    let by_hash = keys.insert_key(&NewKey { key_hash: "5ec2e7".into(), ..new_key("key") }).unwrap_err();
    assert!(matches!(by_hash, Error::KeyHashExists), "{by_hash:?}");
    assert!(by_hash.source().is_none(), "what the server said holds the hash");
    assert_eq!(keys.count_keys(&tenant()).unwrap(), 0);
}

#[test]
fn a_transaction_goes_on_after_a_taken_hash_that_was_tried_in_a_nested_one() {
    let (_database, mut conn) = migrated();
    KeyRow { id: "old", key_hash: Some("taken"), ..KeyRow::default() }.insert(&mut conn);
    let stored = conn.transaction(|conn| {
        let taken = NewKey { key_hash: "taken".into(), ..new_key("key") };
        let tried = conn.transaction(|conn| KeysDriver::new(conn).insert_key(&taken));
        assert!(matches!(tried, Err(Error::KeyHashExists)), "{tried:?}");
        KeysDriver::new(conn).insert_key(&new_key("key"))
    });
    assert_eq!(stored.unwrap().id, key("key"));
}

#[test]
fn a_prefix_that_is_too_long_is_refused_and_not_cut() {
    let (_database, mut conn) = migrated();
    let mut keys = KeysDriver::new(&mut conn);
    let refused = keys.insert_key(&NewKey { key_prefix: "sk-live-abcde".into(), ..new_key("key") });
    assert!(matches!(refused, Err(Error::Query(_))), "{refused:?}");
    assert_eq!(keys.fetch_key_by_hash(&KeyHash::from("key")).unwrap(), None);
}

#[test]
fn neither_a_new_key_nor_a_statement_nor_an_error_shows_the_hash() {
    let (_database, mut conn) = migrated();
    let secret = NewKey { key_hash: "5ec2e7".into(), ..new_key("key") };
    assert!(!format!("{secret:?} {secret:#?}").contains("5ec2e7"));

    let (errors, statements) = statements_of(&mut conn, |conn| {
        let mut keys = KeysDriver::new(conn);
        keys.insert_key(&secret).unwrap();
        assert!(keys.fetch_key_by_hash(&KeyHash::from("5ec2e7")).unwrap().is_some());
        let taken = keys.insert_key(&NewKey { id: key("another"), ..secret.clone() }).unwrap_err();
        let refused = keys.insert_key(&NewKey { name: "x".repeat(101), ..secret.clone() }).unwrap_err();
        [taken, refused]
    });
    assert_eq!(statements.len(), 4);
    assert!(!format!("{statements:?} {errors:?}").contains("5ec2e7"));
}

#[test]
fn a_key_is_recognised_whatever_its_state_and_only_by_its_own_hash() {
    let (_database, mut conn) = migrated();
    let past = Some(at("2020-01-01T00:00:00Z"));
    KeyRow { id: "revoked", status: "revoked", revoked_at: past, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "frozen", is_frozen: true, tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "expired", expires_at: past, ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);

    let revoked = keys.fetch_key_by_hash(&KeyHash::from("revoked")).unwrap().unwrap();
    assert_eq!((revoked.status.as_str(), revoked.revoked_at), ("revoked", past));
    let frozen = keys.fetch_key_by_hash(&KeyHash::from("frozen")).unwrap().unwrap();
    assert_eq!((frozen.tenant_id, frozen.is_frozen), (other(), true));
    assert_eq!(keys.fetch_key_by_hash(&KeyHash::from("expired")).unwrap().unwrap().expires_at, past);
    for hash in ["", "REVOKED", "revoked ", "revoke", "%"] {
        assert_eq!(keys.fetch_key_by_hash(&hash.into()).unwrap(), None, "{hash:?}");
    }
}

#[test]
fn a_look_up_that_fails_is_an_error_and_not_an_unknown_key() {
    let (_database, mut conn) = migrated();
    diesel::sql_query("DROP TABLE api_keys").execute(&mut conn).unwrap();
    let failed = KeysDriver::new(&mut conn).fetch_key_by_hash(&KeyHash::from("key"));
    assert!(matches!(failed, Err(Error::SchemaMismatch(_))), "{failed:?}");
}

#[test]
fn a_freeze_says_who_when_and_why_until_the_next_one_or_an_unfreeze() {
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
fn a_missing_key_and_a_foreign_one_have_no_freeze() {
    let (_database, mut conn) = migrated();
    KeyRow { is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    assert_eq!(keys.fetch_key_freeze(&tenant(), &key("missing")).unwrap(), None);
    assert_eq!(keys.fetch_key_freeze(&other(), &key("key")).unwrap(), None);
    assert!(keys.fetch_key_freeze(&tenant(), &key("key")).unwrap().is_some());
}

#[test]
fn the_first_revocation_stands() {
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
fn the_first_revocation_stands_also_for_a_lock_that_was_read_before_it() {
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
fn a_text_over_its_columns_characters_is_refused_before_anything_is_sent() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let now = at("2026-06-01T12:00:00Z");
    let (long, who) = ("ß".repeat(256), "ß".repeat(101));

    let (refused, sent) = statements_of(&mut conn, |conn| {
        let revoked = with_locked(conn, |keys, key| keys.update_key_revoked(key, now, Some(&long)));
        let all = KeysDriver::new(conn).update_all_keys_revoked(&tenant(), now, Some(&long));
        let freeze = Freeze { at: now, by: &who, reason: None };
        let frozen = with_locked(conn, |keys, key| keys.update_key_frozen_by(key, &freeze));
        [revoked.unwrap_err(), all.unwrap_err(), frozen.unwrap_err()]
    });
    for (error, expected) in
        refused.iter().zip([("revoked_reason", 255), ("revoked_reason", 255), ("frozen_by", 100)])
    {
        assert!(
            matches!(error, Error::TooLong { column, limit } if (*column, *limit) == expected),
            "{error:?}"
        );
    }
    assert!(sent.iter().all(|sql| !sql.contains("UPDATE \"api_keys\"")), "{sent:#?}");

    let freeze = Freeze { at: now, by: &who[2..], reason: Some(&long) };
    with_locked(&mut conn, |keys, key| keys.update_key_frozen_by(key, &freeze)).unwrap();
    with_locked(&mut conn, |keys, key| keys.update_key_revoked(key, now, Some(&long[2..]))).unwrap();
    assert_eq!(revocation_of(&mut conn, "key").1.unwrap().chars().count(), 255);
}

#[test]
fn a_tenant_that_leaves_has_every_key_revoked_that_was_not() {
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
fn an_expiry_is_set_and_cleared_and_nothing_else() {
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
fn changing_a_row_that_the_transaction_removed_is_an_error_whatever_the_change() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let now = at("2026-06-01T12:00:00Z");
    let gone = with_locked(&mut conn, |keys, first| {
        let mut again = || keys.fetch_key_for_update(&tenant(), &key("key")).unwrap().unwrap();
        let (second, third) = (again(), again());
        diesel::delete(api_keys::table).execute(keys.connection())?;
        let freeze = Freeze { at: now, by: "ops", reason: None };
        Ok([
            keys.update_key_frozen_by(first, &freeze),
            keys.update_key_revoked(second, now, None),
            keys.update_key_expires_at(third, None),
        ])
    });
    for gone in gone.unwrap() {
        assert!(matches!(&gone, Err(Error::LockedRowGone(id)) if *id == key("key")), "{gone:?}");
    }
}

#[test]
fn a_lock_of_another_connection_changes_nothing() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut second = database.connect().unwrap();
    second.batch_execute("SET lock_timeout = '5s'").unwrap();
    let now = at("2026-06-01T12:00:00Z");
    let refused = conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let mut lock = || keys.fetch_key_for_update(&tenant(), &key("key")).unwrap().unwrap();
        let (first_lock, second_lock, third_lock) = (lock(), lock(), lock());
        second.transaction(|second| {
            let mut keys = KeysDriver::new(second);
            let freeze = Freeze { at: now, by: "ops", reason: None };
            Ok::<_, Error>([
                keys.update_key_frozen_by(first_lock, &freeze),
                keys.update_key_revoked(second_lock, now, None),
                keys.update_key_expires_at(third_lock, None),
            ])
        })
    });
    for refused in refused.unwrap() {
        assert!(matches!(refused, Err(Error::LockedElsewhere(_))), "{refused:?}");
    }
}

fn ids(keys: Vec<KeySnapshot>) -> Vec<String> {
    keys.into_iter().map(|key| key.id.into()).collect()
}

#[test]
fn expiring_keys_are_the_active_ones_before_the_moment_soonest_first() {
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
fn unused_keys_are_the_active_ones_not_used_since_the_moment_longest_first() {
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

    let mut page = |page| ids(keys.fetch_keys_unused(&tenant(), since, page).unwrap());
    assert_eq!(page(Page::default()), ["never used", "used long ago", "tie-a", "tie-b"]);
    assert_eq!(page(Page { limit: 2, offset: 1 }), ["used long ago", "tie-a"]);
    assert!(page(Page { limit: 0, offset: 0 }).is_empty());
}

#[test]
fn counts_by_status_hold_every_kind_of_key_and_add_up() {
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

/// The recipe that stands at `update_key_expires_at`, without the engine's rules.
fn rotate(
    conn: &mut PgConnection,
    old: &KeyId,
    new: &NewKey,
    grace_ends_at: DateTime<Utc>,
) -> Result<KeySnapshot> {
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let old = keys.fetch_key_for_update(&tenant(), old)?.expect("a key to rotate");
        let new = keys.insert_key(new)?;
        keys.update_key_expires_at(old, Some(grace_ends_at))?;
        Ok(new)
    })
}

#[test]
fn a_rotation_makes_the_new_key_and_lets_the_old_one_expire_or_neither() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let grace_ends_at = at("2026-06-02T00:00:00Z");

    let taken = NewKey { key_hash: "key".into(), ..new_key("new") };
    let failed = rotate(&mut conn, &key("key"), &taken, grace_ends_at);
    assert!(matches!(failed, Err(Error::KeyHashExists)), "{failed:?}");
    assert_eq!(fetch(&mut conn, "key").expires_at, None);

    rotate(&mut conn, &key("key"), &new_key("new"), grace_ends_at).unwrap();
    let old = fetch(&mut conn, "key");
    assert_eq!((old.status.as_str(), old.expires_at), ("active", Some(grace_ends_at)));
    assert_eq!(fetch(&mut conn, "new").expires_at, None);
}

#[test]
fn a_frozen_key_stays_frozen_and_an_unfreeze_revives_no_revoked_key() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let now = at("2026-06-01T12:00:00Z");
    let freeze = Freeze { at: now, by: "ops", reason: Some("odd traffic") };
    with_locked(&mut conn, |keys, key| keys.update_key_frozen_by(key, &freeze)).unwrap();
    let frozen = freeze_of(&mut conn);
    assert!(frozen.is_some());

    let used = KeyUse { tenant_id: TENANT.into(), key_id: key("key"), count: 1, at: now };
    assert_eq!(KeysDriver::new(&mut conn).record_key_uses(&[used]).unwrap(), 1);
    assert_eq!(freeze_of(&mut conn), frozen, "after a use");
    rotate(&mut conn, &key("key"), &new_key("new"), now).unwrap();
    assert_eq!(freeze_of(&mut conn), frozen, "after a rotation");
    with_locked(&mut conn, |keys, key| keys.update_key_revoked(key, now, None)).unwrap();
    assert_eq!(freeze_of(&mut conn), frozen, "after a revocation");

    let unfrozen = unfreeze(&mut conn);
    assert_eq!((unfrozen.is_frozen, unfrozen.status.as_str()), (false, "revoked"));
    assert_eq!(revocation_of(&mut conn, "key"), (Some(now), None));
}
