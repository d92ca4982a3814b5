//! Fetching one key by its id, and properties of all snapshots and ids.

use api_keys_driver::{
    ApiKeyDetailSnapshot, ApiKeySnapshot, Error, KeySnapshot, KeyUsageSnapshot, KeysDriver, Page,
    get_keys_driver, get_keys_read_driver, get_keys_write_driver,
};
use diesel::connection::SimpleConnection;

use crate::support::{
    CallRow, KeyRow, OTHER, assert_fields, at, freeze, key, migrated, other, plans_of, tenant,
};

#[test]
fn every_field_of_a_key_is_what_the_row_holds() {
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
    assert_eq!(KeysDriver::new(&mut conn).fetch_keys(&tenant(), Page::default()).unwrap(), [snapshot]);
}

#[test]
fn a_null_in_a_key_is_none() {
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
fn times_are_the_same_in_a_session_with_another_time_zone() {
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
fn all_three_constructors_return_the_same_driver() {
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
fn an_error_does_not_repeat_its_source_and_is_never_none() {
    let (_database, mut conn) = migrated();
    conn.batch_execute("DROP TABLE api_keys").unwrap();
    let error = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap_err();
    let source = std::error::Error::source(&error).expect("what the server said").to_string();
    assert!(source.contains("api_keys"), "{source}");
    assert!(!error.to_string().contains(&source), "{error}");
}

#[test]
fn a_key_is_found_by_the_primary_key() {
    plans_of("fetch_key_by_id").read(&["Index Scan using api_keys_pkey"]);
}
