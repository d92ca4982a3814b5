//! The prepared statements of a session, and the values that were sent with them.

use diesel::prelude::*;
use diesel::sql_types::{Array, Text};

use super::statements_of;
use crate::every_method::{Input, Method};

diesel::table! {
    #[sql_name = "pg_prepared_statements"]
    prepared (name) {
        name -> Text,
        statement -> Text,
        generic_plans -> BigInt,
        custom_plans -> BigInt,
    }
}

/// A statement that a connection prepared.
pub(crate) struct Prepared {
    pub(crate) name: String,
    pub(crate) sql: String,
    /// The types of its parameters.
    pub(crate) types: String,
    /// The values that it was sent with, as SQL.
    pub(crate) arguments: String,
}

/// Calls a method, and returns the statements that it sent. The last one is its own; the one before it locks the key.
pub(crate) fn prepared_by(conn: &mut PgConnection, method: &Method, input: &Input) -> Vec<Prepared> {
    let (called, sent) = statements_of(conn, |conn| (method.call)(conn, input));
    called.unwrap_or_else(|error| panic!("{}: {error:?}", method.name));
    let sent = sent.iter().filter_map(|statement| statement.split_once(" -- binds: "));
    sent.map(|(sql, binds)| look_up(conn, sql, binds, input)).collect()
}

fn look_up(conn: &mut PgConnection, sql: &str, binds: &str, input: &Input) -> Prepared {
    let types = diesel::dsl::sql::<Array<Text>>("parameter_types::text[]");
    let (name, types): (String, Vec<String>) = prepared::table
        .filter(prepared::statement.eq(sql))
        .select((prepared::name, types))
        .get_result(conn)
        .unwrap_or_else(|error| panic!("not prepared: {sql}: {error}"));
    let hash = if sql.starts_with("INSERT") { "new" } else { input.key_id.as_str() };
    Prepared { name, sql: sql.to_owned(), types: types.join(", "), arguments: arguments(binds, hash) }
}

/// Values as Diesel logs them, written as SQL: `[TenantId("x"), None, 50]` as `'x', NULL, '50'`.
///
/// The log hides a hash.
fn arguments(binds: &str, hash: &str) -> String {
    let list = binds.strip_prefix('[').and_then(|binds| binds.strip_suffix(']')).expect("a list");
    let literal = |value| text(value, hash).map_or("NULL".to_owned(), |text| format!("'{text}'"));
    values(list).into_iter().map(literal).collect::<Vec<_>>().join(", ")
}

fn text(value: &str, hash: &str) -> Option<String> {
    if value == "None" {
        return None;
    }
    if let Some(some) = value.strip_prefix("Some(").and_then(|some| some.strip_suffix(')')) {
        return text(some, hash);
    }
    if let Some(list) = value.strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
        let item = |value| text(value, hash).map_or("NULL".to_owned(), |text| format!("\"{text}\""));
        return Some(format!("{{{}}}", values(list).into_iter().map(item).collect::<Vec<_>>().join(",")));
    }
    if let Some(interval) = value.strip_prefix("PgInterval { microseconds: ") {
        let microseconds = interval.strip_suffix(", days: 0, months: 0 }").expect("no days and no months");
        return Some(format!("{microseconds} microseconds"));
    }
    Some(match value.split('"').nth(1) {
        Some(text) => text.to_owned(),
        None if value == "KeyHash(..)" => hash.to_owned(),
        // A year with five digits is written with a sign, which PostgreSQL would read as the sign of a time zone.
        None => value.trim_start_matches('+').to_owned(),
    })
}

/// The values of a list, which may hold lists and structs.
fn values(list: &str) -> Vec<&str> {
    let (mut values, mut start, mut depth, mut in_text) = (Vec::new(), 0, 0, false);
    for (at, character) in list.char_indices() {
        match character {
            '"' => in_text = !in_text,
            '[' | '{' | '(' if !in_text => depth += 1,
            ']' | '}' | ')' if !in_text => depth -= 1,
            ',' if !in_text && depth == 0 => {
                values.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if !list.is_empty() {
        values.push(list[start..].trim());
    }
    values
}

/// The statements that this connection plans for each call, with the numbers of their generic and custom plans.
pub(crate) fn replanned(conn: &mut PgConnection) -> Vec<(String, i64, i64)> {
    prepared::table
        .filter(prepared::statement.not_like("%pg_prepared_statements%"))
        .filter(prepared::custom_plans.gt(5))
        .select((prepared::statement, prepared::generic_plans, prepared::custom_plans))
        .load(conn)
        .expect("the prepared statements")
}
