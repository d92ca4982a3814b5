//! Hostile input: no method reaches another tenant's row, panics, or sends a statement without its tenant.

use api_keys_driver::{Error, Page, Result};
use chrono::DateTime;
use diesel::prelude::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use throwaway_postgres::Database;

use crate::every_method::{Input, MAINTENANCE, METHODS, Method, WITHOUT_TENANT, confinement};
use crate::support::{
    CallRow, KeyRow, OTHER, TENANT, at, decimal, eventually, migrated_apart, statements_of,
};

/// A text that is in every row of the other tenant, and nowhere else.
pub(crate) const FOREIGN: &str = "belongs to another";

/// A database in which another tenant has rows in every table.
fn foreign_database() -> (Database, PgConnection) {
    let (database, mut conn) = migrated_apart();
    foreign_rows(&mut conn);
    (database, conn)
}

/// Inserts rows of another tenant into every table.
pub(crate) fn foreign_rows(conn: &mut PgConnection) {
    for id in ["key", "other key", "", "'; DROP TABLE api_keys; --"] {
        KeyRow {
            id,
            tenant_id: OTHER,
            user_id: Some("user"),
            name: FOREIGN,
            permissions_json: Some(FOREIGN),
            is_frozen: true,
            created_at: at("2025-01-01T00:00:00Z"),
            expires_at: Some(at("2025-02-01T00:00:00Z")),
            ..KeyRow::default()
        }
        .insert(conn);
        CallRow {
            id,
            tenant_id: OTHER,
            api_key_id: Some(id),
            cost_cents: Some(decimal("77")),
            ..CallRow::default()
        }
        .insert(conn);
    }
}

/// Calls every method with an input that matches no row.
fn call_every_method(conn: &mut PgConnection, with: &Input) {
    for method in METHODS {
        call_with_nothing_there(conn, method, with);
    }
}

/// Calls a method with an input that matches no row.
pub(crate) fn call_with_nothing_there(conn: &mut PgConnection, method: &Method, with: &Input) {
    let (answer, sent) = statements_of(conn, |conn| call(conn, method, with));
    match &answer {
        Ok(_) if WITHOUT_TENANT.contains(&method.name) => {}
        Ok(answer) => {
            assert!(!answer.contains(FOREIGN), "{}: {answer}", method.name);
            assert!(is_nothing(answer) || method.name.starts_with("insert_"), "{}: {answer}", method.name);
        }
        Err(error) => assert!(is_refusal(error), "{}: {error:?}", method.name),
    }
    for statement in sent {
        let sql = statement.split(" -- binds:").next().unwrap_or_default();
        let is_transaction = matches!(sql, "BEGIN" | "COMMIT" | "ROLLBACK");
        // A tenant that no row can have is left out of a batch, which then has one tenant.
        let of_one_tenant = sql.contains("\"tenant_id\" = $");
        let is_confined = is_transaction || of_one_tenant || sql.contains(confinement(method.name));
        assert!(is_confined || WITHOUT_TENANT.contains(&method.name), "{}: {sql}", method.name);
    }
}

/// Calls the method in its own transaction. It is rolled back if it inserts rows that the next call would find, or
/// deletes calls.
fn call(conn: &mut PgConnection, method: &Method, with: &Input) -> Result<String> {
    let mut answer = None;
    let ended = conn.transaction(|conn| match answer.insert((method.call)(conn, with)) {
        Ok(_) if !method.name.starts_with("insert_") && !method.name.starts_with("delete_") => Ok(()),
        _ => Err(diesel::result::Error::RollbackTransaction),
    });
    assert!(matches!(ended, Ok(()) | Err(diesel::result::Error::RollbackTransaction)), "{ended:?}");
    answer.expect("the method was called")
}

pub(crate) fn is_nothing(answer: &str) -> bool {
    let mut counts = answer.split("request_count: ").skip(1).peekable();
    let is_no_usage = counts.peek().is_some() && counts.all(|count| count.starts_with("0,"));
    ["[]", "{}", "0", "None", "NotFound"].contains(&answer) || is_no_usage
}

/// Whether the crate or the server refused a value. No other error may occur.
fn is_refusal(error: &Error) -> bool {
    let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let refused = ["value too long"];
    match error {
        Error::TooLong { .. } | Error::NulByte { .. } | Error::UnencodableText(_) => true,
        Error::InBatch { source, .. } => is_refusal(source),
        Error::Query(_) => refused.iter().any(|refusal| why.starts_with(refusal)),
        _ => false,
    }
}

pub(crate) fn checksum(conn: &mut PgConnection) -> Vec<String> {
    diesel::dsl::sql::<diesel::sql_types::Text>(
        "SELECT k::text FROM api_keys k UNION ALL SELECT c::text FROM proxy_calls c
         UNION ALL SELECT e::text FROM api_key_events e ORDER BY 1",
    )
    .load(conn)
    .unwrap()
}

#[test]
fn no_hostile_text_reaches_a_foreign_row() {
    let (_database, mut conn) = foreign_database();
    let before = checksum(&mut conn);
    let megabyte = "x".repeat(1 << 20);
    let hostile = [
        "",
        " ",
        "\0",
        "key\0",
        "%",
        "_",
        "NULL",
        "$1",
        "' OR '1'='1",
        "' OR tenant_id <> '",
        "'; DROP TABLE api_keys; --",
        "\\'; UPDATE api_keys SET is_frozen = true; --",
        "\" = $1 OR \"tenant_id\" = \"tenant_id",
        "ＫＥＹ",
        "кey",
        "key\u{200b}",
        "\u{202e}yek",
        "22222222-2222-2222-2222-222222222222 ",
        "２２２２２２２２-2222-2222-2222-222222222222",
        "22222222\u{2010}2222-2222-2222-222222222222",
        "\u{feff}22222222-2222-2222-2222-222222222222",
        &megabyte,
    ];
    let ordinary = Input::default();
    for text in hostile {
        // These include ids of the other tenant, and ids that only look like them.
        for with in [
            Input { tenant_id: text.into(), ..ordinary.clone() },
            Input { key_id: text.into(), ..ordinary.clone() },
            Input { status: text.into(), ..ordinary.clone() },
            Input { text: text.into(), ..ordinary.clone() },
            Input {
                tenant_id: text.into(),
                key_id: text.into(),
                status: text.into(),
                text: text.into(),
                ..ordinary.clone()
            },
        ] {
            call_every_method(&mut conn, &with);
        }
    }
    assert_eq!(checksum(&mut conn), before);
}

#[test]
fn ids_of_another_tenant_find_nothing() {
    let (_database, mut conn) = foreign_database();
    let before = checksum(&mut conn);
    for key_id in ["key", "other key", "", "'; DROP TABLE api_keys; --"] {
        call_every_method(&mut conn, &Input { key_id: key_id.into(), ..Input::default() });
    }
    assert_eq!(checksum(&mut conn), before);
}

#[test]
fn no_random_input_reaches_a_foreign_row_or_panics() {
    let (_database, mut conn) = foreign_database();
    let before = checksum(&mut conn);
    let texts = || prop_oneof![Just("key".to_owned()), Just(TENANT.to_owned()), any::<String>()];
    let times = (i64::MIN..i64::MAX).prop_map(DateTime::from_timestamp_micros);
    let inputs = (
        texts(),
        texts(),
        texts(),
        texts(),
        any::<(u32, u32)>(),
        times.prop_filter_map("a time", |time| time),
    );
    let inputs = inputs.prop_map(|(tenant_id, key_id, status, text, (limit, offset), time)| Input {
        tenant_id: tenant_id.into(),
        key_id: key_id.into(),
        status: status.into(),
        page: Page { limit, offset },
        time,
        text,
        ..Input::default()
    });
    let conn = std::cell::RefCell::new(&mut conn);
    TestRunner::new(Config { cases: 128, failure_persistence: None, ..Config::default() })
        .run(&inputs, |with| {
            call_every_method(&mut conn.borrow_mut(), &with);
            Ok(())
        })
        .unwrap();
    assert_eq!(checksum(*conn.borrow_mut()), before);
}

#[test]
fn the_same_input_finds_rows_of_the_own_tenant() {
    let (_database, mut conn) = foreign_database();
    let with = Input { tenant_id: OTHER.into(), ..Input::default() };
    // Neither the lock of a tenant nor a use that is recorded without waiting returns a row.
    let show_nothing = ["lock_tenant", "try_record_key_uses", "try_record_key_uses.two_tenants"];
    let telling = METHODS
        .iter()
        .filter(|method| !show_nothing.contains(&method.name) && !MAINTENANCE.contains(&method.name));
    for method in telling {
        // A follower may have to wait for the transactions of other tests.
        eventually(method.name, || !is_nothing(&conn.test_transaction(|conn| (method.call)(conn, &with))));
    }
}
