//! What serde writes of a snapshot, and reads back.

use api_keys_driver::{EventPosition, KeyCursor, KeySnapshot, KeyUsageSnapshot, KeysDriver, Page};
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
fn money_is_a_string_that_no_reader_rounds() {
    let usage = usage_of(1, "123456789012345678.0001");
    let text = serde_json::to_string(&usage).unwrap();
    assert_eq!(text, r#"{"request_count":1,"spend_cents":"123456789012345678.0001"}"#);
    assert_eq!(serde_json::from_str::<KeyUsageSnapshot>(&text).unwrap(), usage);
}

#[test]
fn a_page_comes_from_a_request() {
    let page: Page = serde_json::from_value(json!({"limit": 10, "offset": 20})).unwrap();
    assert_eq!(page, Page { limit: 10, offset: 20 });
}

#[test]
fn a_position_is_its_text() {
    let position: EventPosition = "742.13".parse().unwrap();
    let value = serde_json::to_value(position).unwrap();
    assert_eq!(value, json!("742.13"));
    assert_eq!(serde_json::from_value::<EventPosition>(value).unwrap(), position);
    let error = serde_json::from_value::<EventPosition>(json!("742")).unwrap_err();
    assert!(error.to_string().starts_with("not a position"), "{error}");
}

#[test]
fn a_cursor_is_its_text() {
    let cursor: KeyCursor = "00065000000000006b6579".parse().unwrap();
    let value = serde_json::to_value(&cursor).unwrap();
    assert_eq!(value, json!(cursor.to_string()));
    assert_eq!(serde_json::from_value::<KeyCursor>(value).unwrap(), cursor);
    let error = serde_json::from_value::<KeyCursor>(json!("the third page")).unwrap_err();
    assert!(error.to_string().starts_with("not a key cursor"), "{error}");
}
