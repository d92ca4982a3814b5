//! Changing a key's name, permissions and limits.

use api_keys_driver::{Change, Error, KeyAuthSnapshot, KeyChanges, KeyEventKind, KeysDriver, Page};
use diesel::prelude::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{KeyRow, at, fetch, key, migrated, plans_of, statements_of, tenant, with, with_locked};

fn auth(conn: &mut PgConnection) -> KeyAuthSnapshot {
    KeysDriver::new(conn).fetch_key_auth_by_id(&tenant(), &key("key")).unwrap().unwrap()
}

fn restricted() -> KeyRow<'static> {
    KeyRow {
        permissions_json: Some(r#"["read"]"#),
        allowed_workers_json: Some("[]"),
        rate_limit_rpm: Some(60),
        max_concurrent_runs: Some(2),
        expires_at: Some(at("2026-09-01T00:00:00Z")),
        ..KeyRow::default()
    }
}

#[test]
fn each_change_sets_its_own_column_and_raises_the_revision_by_one() {
    let expiry = at("2027-01-01T00:00:00.000001Z");
    let keep = KeyChanges::default();
    for (changes, kind) in [
        (KeyChanges { name: Change::Set("Other"), ..keep }, KeyEventKind::Changed),
        (KeyChanges { permissions_json: Change::Set(Some("not json")), ..keep }, KeyEventKind::Changed),
        (KeyChanges { permissions_json: Change::Set(None), ..keep }, KeyEventKind::Changed),
        (KeyChanges { allowed_workers_json: Change::Set(Some("")), ..keep }, KeyEventKind::Changed),
        (KeyChanges { allowed_workers_json: Change::Set(None), ..keep }, KeyEventKind::Changed),
        (KeyChanges { rate_limit_rpm: Change::Set(Some(0)), ..keep }, KeyEventKind::Changed),
        (KeyChanges { rate_limit_rpm: Change::Set(None), ..keep }, KeyEventKind::Changed),
        (KeyChanges { max_concurrent_runs: Change::Set(Some(i32::MAX)), ..keep }, KeyEventKind::Changed),
        (KeyChanges { max_concurrent_runs: Change::Set(None), ..keep }, KeyEventKind::Changed),
        (KeyChanges { expires_at: Change::Set(Some(expiry)), ..keep }, KeyEventKind::ExpirySet),
        (KeyChanges { expires_at: Change::Set(None), ..keep }, KeyEventKind::ExpirySet),
    ] {
        let (_database, mut conn) = migrated();
        KeyRow { id: "beside", ..restricted() }.insert(&mut conn);
        restricted().insert(&mut conn);
        let (before, before_auth, beside) =
            (fetch(&mut conn, "key"), auth(&mut conn), fetch(&mut conn, "beside"));

        let after = with_locked(&mut conn, |keys, key| keys.update_key(key, &changes)).unwrap();

        let revision = before.revision + 1;
        let mut expected = with!(before, revision: revision);
        let mut expected_auth = with!(before_auth, revision: revision);
        if let Change::Set(name) = changes.name {
            expected.name = name.into();
        }
        if let Change::Set(expires_at) = changes.expires_at {
            (expected.expires_at, expected_auth.expires_at) = (expires_at, expires_at);
        }
        if let Change::Set(text) = changes.permissions_json {
            expected_auth.permissions_json = text.map(Into::into);
        }
        if let Change::Set(text) = changes.allowed_workers_json {
            expected_auth.allowed_workers_json = text.map(Into::into);
        }
        if let Change::Set(limit) = changes.rate_limit_rpm {
            expected_auth.rate_limit_rpm = limit;
        }
        if let Change::Set(limit) = changes.max_concurrent_runs {
            expected_auth.max_concurrent_runs = limit;
        }
        assert_eq!((after.clone(), auth(&mut conn)), (expected, expected_auth), "{changes:?}");
        assert_eq!(fetch(&mut conn, "beside"), beside);
        let events =
            KeysDriver::new(&mut conn).fetch_key_events(&tenant(), &key("key"), Page::default()).unwrap();
        let last = events.last().unwrap();
        assert_eq!((last.kind.clone(), last.revision), (kind, revision), "{changes:?}");

        let again = with_locked(&mut conn, |keys, key| keys.update_key(key, &changes)).unwrap();
        assert_eq!(again, after, "the same change again is none");
    }
}

#[test]
fn an_update_that_keeps_every_value_changes_nothing_and_has_no_event() {
    let (_database, mut conn) = migrated();
    restricted().insert(&mut conn);
    let before = (fetch(&mut conn, "key"), auth(&mut conn));
    with_locked(&mut conn, |keys, key| keys.update_key(key, &KeyChanges::default())).unwrap();
    assert_eq!((fetch(&mut conn, "key"), auth(&mut conn)), before);
}

fn change<T: std::fmt::Debug + Clone + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Change<T>> {
    prop_oneof![Just(Change::Keep), value.prop_map(Change::Set)]
}

#[test]
fn several_changes_in_one_update_do_what_each_does_alone() {
    let (_database, mut conn) = migrated();
    restricted().insert(&mut conn);
    let text = || proptest::option::of("[^\0]{0,40}");
    let limit = || proptest::option::of(0..=i32::MAX);
    let inputs = (change("[^\0]{0,100}"), change(text()), change(text()), change(limit()), change(limit()));
    let conn = std::cell::RefCell::new(conn);
    TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() })
        .run(&inputs, |(name, permissions, workers, rate, runs)| {
            let conn = &mut *conn.borrow_mut();
            let (before, before_auth) = (fetch(conn, "key"), auth(conn));
            let changes = KeyChanges {
                name: match &name {
                    Change::Keep => Change::Keep,
                    Change::Set(name) => Change::Set(name),
                },
                permissions_json: match &permissions {
                    Change::Keep => Change::Keep,
                    Change::Set(text) => Change::Set(text.as_deref()),
                },
                allowed_workers_json: match &workers {
                    Change::Keep => Change::Keep,
                    Change::Set(text) => Change::Set(text.as_deref()),
                },
                rate_limit_rpm: rate,
                max_concurrent_runs: runs,
                expires_at: Change::Keep,
            };
            let after = with_locked(conn, |keys, key| keys.update_key(key, &changes)).unwrap();
            let after_auth = auth(conn);
            let or = |change: &Change<Option<String>>, kept: &Option<String>| match change {
                Change::Keep => kept.clone(),
                Change::Set(text) => text.clone(),
            };
            let number = |change: Change<Option<i32>>, kept| match change {
                Change::Keep => kept,
                Change::Set(limit) => limit,
            };
            prop_assert_eq!(after.name, if let Change::Set(name) = name { name } else { before.name });
            prop_assert_eq!(after.expires_at, before.expires_at);
            prop_assert_eq!(after_auth.permissions_json, or(&permissions, &before_auth.permissions_json));
            prop_assert_eq!(after_auth.allowed_workers_json, or(&workers, &before_auth.allowed_workers_json));
            prop_assert_eq!(after_auth.rate_limit_rpm, number(rate, before_auth.rate_limit_rpm));
            prop_assert_eq!(after_auth.max_concurrent_runs, number(runs, before_auth.max_concurrent_runs));
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_value_that_does_not_fit_is_refused_before_anything_is_sent() {
    let (_database, mut conn) = migrated();
    restricted().insert(&mut conn);
    let (long, keep) = ("ß".repeat(100) + " ", KeyChanges::default());
    for (changes, expected) in [
        (KeyChanges { name: Change::Set(&long), ..keep }, "name holds at most 100 characters"),
        (KeyChanges { name: Change::Set("\0"), ..keep }, "name cannot hold a NUL byte"),
        (
            KeyChanges { permissions_json: Change::Set(Some("a\0")), ..keep },
            "permissions_json cannot hold a NUL byte",
        ),
        (
            KeyChanges { allowed_workers_json: Change::Set(Some("\0")), ..keep },
            "allowed_workers_json cannot hold a NUL byte",
        ),
        (KeyChanges { rate_limit_rpm: Change::Set(Some(-1)), ..keep }, "rate_limit_rpm is negative"),
        (
            KeyChanges { max_concurrent_runs: Change::Set(Some(i32::MIN)), ..keep },
            "max_concurrent_runs is negative",
        ),
    ] {
        let (refused, sent) =
            statements_of(&mut conn, |conn| with_locked(conn, |keys, key| keys.update_key(key, &changes)));
        let refused: Error = refused.unwrap_err();
        assert!(refused.to_string().starts_with(expected), "{refused}");
        assert!(sent.iter().all(|sql| !sql.starts_with("UPDATE")), "{sent:#?}");
    }
    let fits = KeyChanges { name: Change::Set(&long[..200]), ..keep };
    let stored = with_locked(&mut conn, |keys, key| keys.update_key(key, &fits)).unwrap();
    assert_eq!(stored.name.chars().count(), 100);
}

#[test]
fn a_change_finds_its_row_by_the_primary_key() {
    plans_of("update_key").read(&["Index Scan using api_keys_pkey"]);
}
