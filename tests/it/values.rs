//! Writes every kind of legal value into every column: no method fails, panics or shows another tenant's row.

use std::fmt::Write;

use api_keys_driver::{Error, KeyId, Page};
use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{Bool, Nullable, Text};

use crate::every_method::{Input, METHODS, WITHOUT_TENANT};
use crate::support::{CallRow, KeyRow, OTHER, TENANT, at, key, migrated_apart};

/// A text that only the other tenant's rows contain.
const FOREIGN: &str = "belongs to another";

#[derive(QueryableByName)]
struct Column {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Bool)]
    is_nullable: bool,
    #[diesel(sql_type = Nullable<diesel::sql_types::Integer>)]
    length: Option<i32>,
}

fn columns(conn: &mut PgConnection, table: &str) -> Vec<Column> {
    diesel::sql_query(format!(
        "SELECT column_name::text AS name, data_type::text AS kind, is_nullable = 'YES' AS is_nullable,
                character_maximum_length::int AS length
         FROM information_schema.columns WHERE table_name = '{table}' ORDER BY ordinal_position"
    ))
    .load(conn)
    .unwrap()
}

/// The limits and the special values of a column's type, as SQL.
fn values(column: &Column) -> Vec<String> {
    let mut values: Vec<String> = match column.kind.as_str() {
        "character varying" | "text" => {
            let longest = column.length.unwrap_or(1 << 20);
            let mut texts: Vec<String> =
                ["''", "' '", "E'\\n\\t'", "'NULL'", "'{\"a\": [1]}'", "'active'", "'revoked'", "'ACTIVE'"]
                    .map(Into::into)
                    .to_vec();
            for character in ["x", "é", "🔑", "\u{202e}", "\u{10ffff}", "\u{1}", "\""] {
                texts.push(format!("'{character}'"));
                texts.push(format!("repeat('{character}', {longest})"));
            }
            texts
        }
        "timestamp with time zone" => [
            "infinity",
            "-infinity",
            "4714-11-24 BC",
            "0001-01-01 BC",
            "0001-01-01",
            "1969-12-31 23:59:59.999999",
            "1970-01-01",
            "1999-12-31 23:59:60",
            "9999-12-31 23:59:59.999999",
            "262142-12-31 23:59:59.999999",
            "262143-01-01",
            "294276-12-31 23:59:59.999999",
        ]
        .map(|time| format!("timestamptz '{time} UTC'").replace("infinity UTC", "infinity"))
        .to_vec(),
        "integer" => ["-2147483648", "-1", "0", "2147483647"].map(Into::into).to_vec(),
        "bigint" => ["-9223372036854775808", "-1", "0", "9223372036854775807"].map(Into::into).to_vec(),
        "boolean" => ["false", "true"].map(Into::into).to_vec(),
        "numeric" => ["-999999.9999", "-0.0001", "0", "0.0001", "999999.9999"].map(Into::into).to_vec(),
        other => panic!("a type without values: {other}"),
    };
    if column.is_nullable {
        values.push("NULL".into());
    }
    values
}

/// The statement that sets the value in the tenant's row.
fn with_value(table: &str, column: &str, value: &str) -> String {
    let id = if table == "api_keys" { "key" } else { "call" };
    format!("UPDATE {table} SET {column} = {value} WHERE id = '{id}' RETURNING id, tenant_id")
}

#[derive(QueryableByName)]
struct Ids {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    tenant_id: String,
}

fn is_too_long(error: &Error) -> bool {
    let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let named = match error {
        Error::InBatch { source, .. } => matches!(**source, Error::TooLong { .. }),
        error => matches!(error, Error::TooLong { .. }),
    };
    named || why.starts_with("value too long")
}

#[test]
fn no_value_of_any_column_makes_a_method_fail() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    KeyRow { id: "other key", created_at: at("2026-01-02T00:00:00Z"), ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "foreign", tenant_id: OTHER, name: FOREIGN, ..KeyRow::default() }.insert(&mut conn);
    CallRow::default().insert(&mut conn);

    let mut tried = 0;
    let mut failures = String::new();
    for table in ["api_keys", "proxy_calls"] {
        for column in columns(&mut conn, table) {
            for value in values(&column) {
                let ended = conn.transaction(|conn| -> Result<(), DieselError> {
                    let stored = diesel::sql_query(with_value(table, &column.name, &value));
                    // A value that the server refuses cannot be in a row.
                    let Ids { id, tenant_id } = stored.get_result(conn)?;
                    let key_id = if table == "api_keys" { KeyId::from(id) } else { key("key") };
                    let with = Input { tenant_id: tenant_id.into(), key_id, ..Input::default() };
                    for method in METHODS {
                        tried += 1;
                        let called = conn.transaction::<String, Error, _>(|conn| (method.call)(conn, &with));
                        match called {
                            Ok(answer)
                                if with.tenant_id.as_str() == TENANT
                                    && !WITHOUT_TENANT.contains(&method.name)
                                    && answer.contains(FOREIGN) =>
                            {
                                let _ = writeln!(failures, "{table}.{} = {value}: {answer}", column.name);
                            }
                            Ok(_) => {}
                            // A call may have a tenant that no key can have.
                            Err(error) if table == "proxy_calls" && is_too_long(&error) => {}
                            Err(error) => {
                                let why = format!("{error:?}");
                                let _ = writeln!(
                                    failures,
                                    "{table}.{} = {value}: {} {}",
                                    column.name,
                                    method.name,
                                    why.chars().take(200).collect::<String>()
                                );
                            }
                        }
                    }
                    Err(DieselError::RollbackTransaction)
                });
                assert!(ended.is_err());
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(tried > 5_000, "only {tried} calls were tried");
}

#[test]
fn an_expiry_out_of_range_saturates() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    for (stored, read) in [
        ("infinity", DateTime::<Utc>::MAX_UTC),
        ("294276-01-01", DateTime::<Utc>::MAX_UTC),
        ("-infinity", DateTime::<Utc>::MIN_UTC),
    ] {
        conn.batch_execute(&format!("UPDATE api_keys SET expires_at = '{stored}'")).unwrap();
        let page = Page::default();
        let mut keys = api_keys_driver::KeysDriver::new(&mut conn);
        let (tenant_id, key_id) = (TENANT.into(), key("key"));
        assert_eq!(keys.fetch_key_by_id(&tenant_id, &key_id).unwrap().unwrap().expires_at, Some(read));
        assert_eq!(keys.fetch_keys(&tenant_id, page).unwrap()[0].expires_at, Some(read));
        assert_eq!(keys.fetch_key_by_hash(&"key".into()).unwrap().unwrap().expires_at, Some(read));
        let mut facade = api_keys_driver::ApiKeysFacadeDriver::new(&mut conn);
        assert_eq!(facade.fetch_api_keys(&tenant_id, None, page).unwrap()[0].expires_at, Some(read));
        let detail = facade.fetch_api_key_by_id(&tenant_id, &key_id).unwrap().unwrap();
        assert_eq!(detail.expires_at, Some(read));
    }
}

#[test]
fn a_cost_of_any_precision_is_added_up_and_an_infinite_one_is_named() {
    let (_database, mut conn) = migrated_apart();
    conn.batch_execute("ALTER TABLE proxy_calls ALTER COLUMN cost_cents TYPE numeric").unwrap();
    KeyRow::default().insert(&mut conn);
    CallRow::default().insert(&mut conn);
    for cost in ["1e131071", "-1e131071", "1e-16383", "0.00005", "Infinity", "-Infinity"] {
        conn.batch_execute(&format!("UPDATE proxy_calls SET cost_cents = '{cost}'")).unwrap();
        for method in METHODS {
            let mut answer = None;
            conn.test_transaction(|conn| {
                answer = Some((method.call)(conn, &Input::default()));
                Ok::<_, std::convert::Infallible>(())
            });
            match answer.unwrap() {
                Ok(_) => {}
                Err(Error::CostNotANumber { .. }) if cost.contains("Infinity") => {}
                Err(error) => panic!("{cost}: {} {error:?}", method.name),
            }
        }
    }
}
