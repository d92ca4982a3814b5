use std::thread;

use api_keys_driver::schema::api_keys;
use api_keys_driver::{
    ApiKeyDetailSnapshot, ApiKeySnapshot, Error, KeySnapshot, KeyUsageSnapshot, KeysDriver, LockedKey, Page,
    Result, get_keys_driver, get_keys_read_driver, get_keys_write_driver,
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;

use crate::support::{
    CallRow, KeyRow, OTHER, TENANT, assert_fields, at, decimal, key, migrated, other, tenant,
    usage as usage_of, wait_until_one_waits, with,
};

const ALL: Page = Page { limit: u32::MAX, offset: 0 };

fn ids(keys: Vec<KeySnapshot>) -> Vec<String> {
    keys.into_iter().map(|key| key.id.into()).collect()
}

fn ids_of_page(conn: &mut PgConnection, page: Page) -> Vec<String> {
    ids(KeysDriver::new(conn).fetch_keys(&tenant(), page).unwrap())
}

#[test]
fn a_page_holds_every_kind_of_key_of_the_tenant_and_no_other() {
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
fn keys_of_one_moment_are_ordered_by_id_and_pages_neither_repeat_nor_skip_them() {
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
fn every_field_of_a_snapshot_is_what_the_row_holds() {
    let (_database, mut conn) = migrated();
    KeyRow {
        name: "Schlüssel 🔑 \u{202e}x",
        status: "revoked",
        is_frozen: true,
        frozen_at: Some(at("2026-02-03T04:05:06.789012Z")),
        created_at: at("1999-12-31T23:59:59.999999Z"),
        last_used_at: Some(at("2026-03-04T05:06:07.000001Z")),
        expires_at: Some(at("9999-12-31T23:59:59.999999Z")),
        total_requests: i64::MAX,
        is_synthetic: true,
        ..KeyRow::default()
    }
    .insert(&mut conn);

    let snapshot = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
    assert_fields!(
        snapshot,
            id: key("key"),
            tenant_id: tenant(),
            name: "Schlüssel 🔑 \u{202e}x".into(),
            key_prefix: "sk-live-abcd".into(),
            status: "revoked".into(),
            is_frozen: true,
            frozen_at: Some(at("2026-02-03T04:05:06.789012Z")),
            created_at: at("1999-12-31T23:59:59.999999Z"),
            last_used_at: Some(at("2026-03-04T05:06:07.000001Z")),
            expires_at: Some(at("9999-12-31T23:59:59.999999Z")),
            total_requests: i64::MAX,
            is_synthetic: true,
            revision: 1,
    );
    assert_eq!(KeysDriver::new(&mut conn).fetch_keys(&tenant(), ALL).unwrap(), [snapshot]);
}

#[test]
fn what_is_null_is_none() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);

    let key = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
    assert_eq!((key.frozen_at, key.last_used_at, key.expires_at), (None, None, None));
}

#[test]
fn a_missing_key_and_a_foreign_one_are_none() {
    let (_database, mut conn) = migrated();
    KeyRow { tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);

    assert_eq!(keys.fetch_key_by_id(&tenant(), &key("key")).unwrap(), None);
    assert_eq!(keys.fetch_key_by_id(&other(), &key("missing")).unwrap(), None);
    assert!(keys.fetch_key_by_id(&other(), &key("key")).unwrap().is_some());
}

#[test]
fn ids_are_any_text_and_compared_byte_for_byte() {
    let (_database, mut conn) = migrated();
    let strange = ["", " ", "KEY", "key ", "%", "a'b\"c\\", "ключ", "e\u{301}", "\u{e9}", "$1", "NULL"];
    for id in strange {
        KeyRow { id, tenant_id: id, ..KeyRow::default() }.insert(&mut conn);
    }
    let mut keys = KeysDriver::new(&mut conn);
    for id in strange {
        assert_eq!(keys.count_keys(&id.into()).unwrap(), 1, "{id:?}");
        let found = keys.fetch_key_by_id(&id.into(), &id.into()).unwrap().unwrap();
        assert_eq!((found.id, found.tenant_id), (id.into(), id.into()));
    }
    assert_eq!(keys.fetch_key_by_id(&"KEY".into(), &"key".into()).unwrap(), None);
}

#[test]
fn times_are_the_same_moments_in_a_session_of_another_time_zone() {
    let (_database, mut conn) = migrated();
    KeyRow { created_at: at("2026-03-29T01:30:00.123456Z"), ..KeyRow::default() }.insert(&mut conn);
    CallRow { created_at: at("2026-03-29T01:30:00.123456Z"), ..CallRow::default() }.insert(&mut conn);
    conn.batch_execute("SET TIME ZONE 'Europe/Berlin'").unwrap();

    let frozen = freeze(&mut conn, at("2026-10-25T01:30:00.654321Z"));
    assert_eq!(frozen.created_at, at("2026-03-29T01:30:00.123456Z"));
    assert_eq!(frozen.frozen_at, Some(at("2026-10-25T01:30:00.654321Z")));
    let mut keys = KeysDriver::new(&mut conn);
    let usage = |keys: &mut KeysDriver<'_>, since| {
        keys.fetch_key_usage(&tenant(), &key("key"), at(since)).unwrap().request_count
    };
    assert_eq!(usage(&mut keys, "2026-03-29T01:30:00.123456Z"), 1);
    assert_eq!(usage(&mut keys, "2026-03-29T01:30:00.123457Z"), 0);
}

#[test]
fn usage_adds_up_the_calls_of_the_key_and_tenant_since_the_moment() {
    let (_database, mut conn) = migrated();
    let since = at("2026-05-01T00:00:00Z");
    let cost = |text| Some(decimal(text));
    let inside = [
        CallRow { id: "at since", cost_cents: cost("0.0001"), ..CallRow::default() },
        CallRow { id: "no cost", cost_cents: None, ..CallRow::default() },
        CallRow { id: "blocked", was_blocked: Some(true), cost_cents: cost("0.1"), ..CallRow::default() },
        CallRow { id: "unknown", was_blocked: None, cost_cents: cost("0.2"), ..CallRow::default() },
        CallRow {
            id: "replayed",
            replayed_from_id: Some("x"),
            cost_cents: cost("999999.9999"),
            ..CallRow::default()
        },
        CallRow { id: "credit", cost_cents: cost("-0.5"), ..CallRow::default() },
    ];
    for call in inside {
        CallRow { created_at: since, ..call }.insert(&mut conn);
    }
    let outside = [
        CallRow { id: "before", created_at: since - TimeDelta::microseconds(1), ..CallRow::default() },
        CallRow { id: "other key", api_key_id: Some("other"), created_at: since, ..CallRow::default() },
        CallRow { id: "no key", api_key_id: None, created_at: since, ..CallRow::default() },
        CallRow { id: "other tenant", tenant_id: OTHER, created_at: since, ..CallRow::default() },
    ];
    for call in outside {
        CallRow { cost_cents: cost("77"), ..call }.insert(&mut conn);
    }

    let usage = KeysDriver::new(&mut conn).fetch_key_usage(&tenant(), &key("key"), since).unwrap();
    assert_eq!(usage, usage_of(6, "999999.8000"));
}

#[test]
fn usage_of_nothing_and_of_calls_without_a_cost_is_zero() {
    let (_database, mut conn) = migrated();
    let since = at("2026-01-01T00:00:00Z");
    let mut keys = KeysDriver::new(&mut conn);
    let none = keys.fetch_key_usage(&tenant(), &key("key"), since).unwrap();
    assert_eq!(none, usage_of(0, "0"));

    CallRow::default().insert(keys.connection());
    let free = keys.fetch_key_usage(&tenant(), &key("key"), since).unwrap();
    assert_eq!(free, usage_of(1, "0"));
}

#[test]
fn a_spend_that_a_double_cannot_hold_is_exact() {
    let (_database, mut conn) = migrated();
    conn.batch_execute(&format!(
        "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents)
         SELECT n, '{TENANT}', 'key', '', '', '', '', 999999.9999 FROM generate_series(1, 20000) AS n"
    ))
    .unwrap();

    let usage = KeysDriver::new(&mut conn)
        .fetch_key_usage(&tenant(), &key("key"), at("2026-01-01T00:00:00Z"))
        .unwrap();
    assert_eq!(usage.spend_cents, decimal("19999999998.0000"));
}

/// Runs `work` on the locked key in a transaction of its own.
pub(crate) fn with_locked<T>(
    conn: &mut PgConnection,
    work: impl for<'c> FnOnce(&mut KeysDriver<'c>, LockedKey<'c>) -> Result<T>,
) -> Result<T> {
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let locked = keys.fetch_key_for_update(&tenant(), &key("key"))?.expect("a key to lock");
        work(&mut keys, locked)
    })
}

fn freeze(conn: &mut PgConnection, now: DateTime<Utc>) -> KeySnapshot {
    with_locked(conn, |keys, key| keys.update_key_frozen(key, now)).unwrap()
}

#[expect(clippy::redundant_closure_for_method_calls, reason = "the path is not general over the borrow")]
pub(crate) fn unfreeze(conn: &mut PgConnection) -> KeySnapshot {
    with_locked(conn, |keys, key| keys.update_key_unfrozen(key)).unwrap()
}

#[test]
fn freezing_and_unfreezing_change_the_two_columns_and_return_the_row() {
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
fn digits_finer_than_a_microsecond_are_cut_off() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let frozen = freeze(&mut conn, at("2026-06-01T12:00:00.123456999Z"));
    assert_eq!(frozen.frozen_at, Some(at("2026-06-01T12:00:00.123456Z")));
}

#[test]
fn locking_a_missing_or_foreign_key_is_none() {
    let (_database, mut conn) = migrated();
    KeyRow { tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        assert!(keys.fetch_key_for_update(&tenant(), &key("key"))?.is_none());
        assert!(keys.fetch_key_for_update(&other(), &key("missing"))?.is_none());
        assert!(keys.fetch_key_for_update(&other(), &key("key"))?.is_some());
        Ok::<_, Error>(())
    })
    .unwrap();
}

#[test]
fn locking_outside_a_transaction_is_refused() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let refused = KeysDriver::new(&mut conn).fetch_key_for_update(&tenant(), &key("key"));
    assert!(matches!(refused, Err(Error::NotInTransaction)), "{refused:?}");
}

#[test]
fn a_lock_makes_another_wait_and_the_other_sees_what_it_left() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let now = at("2026-06-01T12:00:00Z");

    thread::scope(|scope| {
        let second = with_locked(&mut conn, |keys, locked| {
            let mut other_worker = database.connect().unwrap();
            let second =
                scope.spawn(move || with_locked(&mut other_worker, |_, locked| Ok(locked.into_snapshot())));
            wait_until_one_waits(&mut database.connect().unwrap());
            assert!(!second.is_finished());
            keys.update_key_frozen(locked, now)?;
            Ok(second)
        });
        let seen = second.unwrap().join().unwrap().unwrap();
        assert_eq!(seen.frozen_at, Some(now));
    });
}

#[test]
fn a_lock_holds_up_neither_readers_nor_rows_that_refer_to_the_key() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute(
        "CREATE TABLE worker_runs (id text PRIMARY KEY, api_key_id varchar(36) REFERENCES api_keys (id))",
    )
    .unwrap();
    let mut bystander = database.connect().unwrap();
    bystander.batch_execute("SET lock_timeout = '10s'").unwrap();

    with_locked(&mut conn, |keys, locked| {
        bystander.batch_execute("INSERT INTO worker_runs VALUES ('before', 'key')").unwrap();
        keys.update_key_frozen(locked, at("2026-06-01T12:00:00Z"))?;
        bystander.batch_execute("INSERT INTO worker_runs VALUES ('after', 'key')").unwrap();
        let read = KeysDriver::new(&mut bystander).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
        assert!(!read.is_frozen, "what is not committed was read");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_lock_of_another_connection_is_refused() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut second = database.connect().unwrap();
    second.batch_execute("SET lock_timeout = '2s'").unwrap();

    let refused = conn.transaction(|conn| {
        let locked = KeysDriver::new(conn).fetch_key_for_update(&tenant(), &key("key"))?.unwrap();
        second.transaction(|second| {
            KeysDriver::new(second).update_key_frozen(locked, at("2026-06-01T12:00:00Z"))
        })
    });
    assert!(matches!(&refused, Err(Error::LockedElsewhere(id)) if *id == key("key")), "{refused:?}");
}

#[test]
fn a_lock_that_was_given_up_by_hand_is_refused() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);

    AnsiTransactionManager::begin_transaction(keys.connection()).unwrap();
    let locked = keys.fetch_key_for_update(&tenant(), &key("key")).unwrap().unwrap();
    AnsiTransactionManager::commit_transaction(keys.connection()).unwrap();
    let refused = keys.update_key_unfrozen(locked);
    assert!(matches!(refused, Err(Error::NotInTransaction)), "{refused:?}");
}

#[test]
fn changing_a_row_that_the_transaction_removed_is_an_error() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let gone = with_locked(&mut conn, |keys, locked| {
        diesel::delete(api_keys::table).execute(keys.connection())?;
        keys.update_key_unfrozen(locked)
    });
    assert!(matches!(&gone, Err(Error::LockedRowGone(id)) if *id == key("key")), "{gone:?}");
}

#[test]
fn a_transaction_that_fails_leaves_the_key_as_it_was() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let failed: Result<()> = with_locked(&mut conn, |keys, locked| {
        keys.update_key_frozen(locked, at("2026-06-01T12:00:00Z"))?;
        Err(diesel::result::Error::RollbackTransaction.into())
    });
    assert!(failed.is_err());
    let key = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
    assert!(!key.is_frozen);
}

#[test]
fn the_three_names_that_callers_know_borrow_the_same_driver() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    for get in [get_keys_driver, get_keys_read_driver, get_keys_write_driver] {
        assert_eq!(get(&mut conn).count_keys(&tenant()).unwrap(), 1);
    }
}

#[test]
fn snapshots_and_errors_are_detached() {
    fn detached<T: std::fmt::Debug + Send + Sync + 'static>() {}
    fn plain<T: Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static>() {
        detached::<T>();
    }
    plain::<KeySnapshot>();
    plain::<KeyUsageSnapshot>();
    plain::<ApiKeySnapshot>();
    plain::<ApiKeyDetailSnapshot>();
    detached::<Error>();
}

#[test]
fn input_that_the_server_refuses_is_an_error_and_not_an_absence() {
    let (_database, mut conn) = migrated();
    let mut keys = KeysDriver::new(&mut conn);
    let nul = keys.fetch_key_by_id(&tenant(), &key("a\0b"));
    assert!(matches!(nul, Err(Error::Query(_))), "{nul:?}");
}

#[test]
fn usage_since_ever_counts_all_calls_and_since_the_end_of_time_none() {
    let (_database, mut conn) = migrated();
    CallRow::default().insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    for (since, count) in [(DateTime::<Utc>::MIN_UTC, 1), (DateTime::<Utc>::MAX_UTC, 0)] {
        assert_eq!(keys.fetch_key_usage(&tenant(), &key("key"), since).unwrap().request_count, count);
    }
}

#[test]
fn an_error_does_not_repeat_its_source_and_is_never_none() {
    let (_database, mut conn) = migrated();
    conn.batch_execute("DROP TABLE api_keys").unwrap();
    let error = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap_err();
    let source = std::error::Error::source(&error).expect("what the server said").to_string();
    assert!(source.contains("api_keys"), "{source}");
    assert!(!error.to_string().contains(&source), "{error}");
}
