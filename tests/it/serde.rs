//! The serialised form of ids, snapshots and settings, and that it can be read back.

use std::time::Duration;

use api_keys_driver::{
    EventPosition, KeyCursor, KeyEventCursor, KeySnapshot, KeyUsageSnapshot, KeysDriver, Page, PoolConfig,
    StatementCache, Timeouts,
};
use diesel::prelude::*;
use serde_json::json;

use crate::support::{KeyRow, at, key, migrated, tenant, usage_of};

#[test]
fn ids_are_plain_strings_and_times_are_rfc_3339() {
    let (_database, mut conn) = migrated();
    let created_at = at("2026-01-01T00:00:00.123456Z");
    KeyRow { created_at, status: "on hold", ..KeyRow::default() }.insert(&mut conn);
    let snapshot = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap().unwrap();
    let value = serde_json::to_value(&snapshot).unwrap();
    assert_eq!(value["id"], json!("key"));
    assert_eq!(value["tenant_id"], json!(tenant().as_str()));
    assert_eq!(value["status"], json!("on hold"));
    assert_eq!(value["created_at"], json!("2026-01-01T00:00:00.123456Z"));
    assert_eq!(serde_json::from_value::<KeySnapshot>(value).unwrap(), snapshot);
}

#[test]
fn money_is_serialised_as_a_string() {
    let usage = usage_of(1, "123456789012345678.0001");
    let text = serde_json::to_string(&usage).unwrap();
    assert_eq!(text, r#"{"request_count":1,"spend_cents":"123456789012345678.0001","is_rounded":false}"#);
    assert_eq!(serde_json::from_str::<KeyUsageSnapshot>(&text).unwrap(), usage);
}

#[test]
fn a_page_comes_from_a_request() {
    let page: Page = serde_json::from_value(json!({"limit": 10, "offset": 20})).unwrap();
    assert_eq!(page, Page { limit: 10, offset: 20 });
}

#[test]
fn a_position_is_serialised_as_its_text() {
    let position: EventPosition = "00000000000002e6.742.13".parse().unwrap();
    let value = serde_json::to_value(position).unwrap();
    assert_eq!(value, json!("00000000000002e6.742.13"));
    assert_eq!(serde_json::from_value::<EventPosition>(value).unwrap(), position);
    let error = serde_json::from_value::<EventPosition>(json!("742.13")).unwrap_err();
    assert!(error.to_string().contains("not a position"), "{error}");
}

#[test]
fn a_cursor_is_serialised_as_its_text() {
    let cursor: KeyCursor = "00065000000000006b6579".parse().unwrap();
    let value = serde_json::to_value(&cursor).unwrap();
    assert_eq!(value, json!(cursor.to_string()));
    assert_eq!(serde_json::from_value::<KeyCursor>(value).unwrap(), cursor);
    let error = serde_json::from_value::<KeyCursor>(json!("the third page")).unwrap_err();
    assert!(error.to_string().starts_with("the text is not a cursor"), "{error}");
}

#[test]
fn a_cursor_of_a_history_is_serialised_as_its_text() {
    let cursor: KeyEventCursor = "h0000000000000002000000000000000d".parse().unwrap();
    let value = serde_json::to_value(cursor).unwrap();
    assert_eq!(value, json!(cursor.to_string()));
    assert_eq!(serde_json::from_value::<KeyEventCursor>(value).unwrap(), cursor);
    let error = serde_json::from_value::<KeyEventCursor>(json!({"revision": 2, "id": 13})).unwrap_err();
    assert!(error.to_string().contains("expected a string"), "{error}");
}

#[test]
fn a_pool_is_configured_from_a_file() {
    let (database, _conn) = migrated();
    let settings = json!({
        "database_url": database.url(),
        "size": 2,
        "wait": "1s 500ms",
        "max_lifetime": "2m",
        "idle_timeout": "90s",
        "min_idle": 1,
        "timeouts": { "lock": "250ms" },
        "application_name": "worker",
        "statement_cache": "on",
    });
    let config: PoolConfig = serde_json::from_value(settings).unwrap();
    let pool = config.build().unwrap();
    assert_eq!((pool.as_r2d2().max_size(), pool.as_r2d2().min_idle()), (2, Some(1)));
    assert_eq!(pool.as_r2d2().connection_timeout(), Duration::from_millis(1500));
    assert_eq!(pool.as_r2d2().max_lifetime(), Some(Duration::from_secs(120)));
    assert_eq!(pool.as_r2d2().idle_timeout(), Some(Duration::from_secs(90)));
    diesel::define_sql_function!(fn current_setting(name: diesel::sql_types::Text) -> Text);
    let mut conn = pool.get().unwrap();
    for (name, expected) in
        [("lock_timeout", "250ms"), ("statement_timeout", "30s"), ("application_name", "worker")]
    {
        let setting: String = diesel::select(current_setting(name)).get_result(&mut conn).unwrap();
        assert_eq!(setting, expected);
    }
}

#[test]
fn a_pool_needs_its_url_and_has_every_other_default_of_its_constructor() {
    let config: PoolConfig = serde_json::from_value(json!({"database_url": "host=h"})).unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", PoolConfig::new("host=h")));
    for (settings, missing) in [
        (json!({}), "missing field `database_url`"),
        (json!(5432), "expected a map of settings"),
        (json!({"database_url": "h", "sise": 3}), "unknown field `sise`"),
        (json!({"database_url": "h", "wait": 3}), "expected a duration"),
        (json!({"database_url": "h", "timeouts": {"locks": "1s"}}), "unknown field `locks`"),
    ] {
        let error = serde_json::from_value::<PoolConfig>(settings).unwrap_err().to_string();
        assert!(error.contains(missing), "{error}");
    }
}

#[test]
fn an_error_does_not_quote_a_connection_string_in_the_place_of_the_settings() {
    let url = "postgres://worker:s3cr3t@localhost/keys";
    for settings in
        [json!(url), json!([url]), json!({"database_url": [url]}), json!({"database_url": {"url": url}})]
    {
        let text = settings.to_string();
        let errors = [
            serde_json::from_value::<PoolConfig>(settings).unwrap_err(),
            serde_json::from_str::<PoolConfig>(&text).unwrap_err(),
        ];
        for error in errors {
            assert!(!error.to_string().contains("s3cr3t"), "{error}");
        }
    }
}

#[test]
fn timeouts_and_the_statement_cache_are_written_and_read_back() {
    let timeouts = Timeouts { lock: Duration::from_millis(1500), ..Timeouts::default() };
    let value = serde_json::to_value(timeouts).unwrap();
    assert_eq!(value, json!({"statement": "30s", "lock": "1s 500ms", "idle_in_transaction": "10s"}));
    assert_eq!(serde_json::from_value::<Timeouts>(value).unwrap(), timeouts);
    assert_eq!(serde_json::from_value::<Timeouts>(json!({})).unwrap(), Timeouts::default());
    for (cache, text) in [(StatementCache::On, "on"), (StatementCache::Off, "off")] {
        assert_eq!(serde_json::to_value(cache).unwrap(), json!(text));
        assert_eq!(serde_json::from_value::<StatementCache>(json!(text)).unwrap(), cache);
    }
}
