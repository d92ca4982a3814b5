//! Finds the schema of the tables on the session's search path. Every statement of `check` and `migrate` names it.

use diesel::prelude::*;
use diesel::sql_types::{Array, Oid, Text};

use crate::Result;

/// A table on the session's search path.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub(crate) struct Found {
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Text)]
    pub(crate) schema: String,
    #[diesel(sql_type = Oid)]
    pub(crate) oid: u32,
    #[diesel(sql_type = Text)]
    pub(crate) kind: String,
}

/// The first table of each name on the search path.
pub(crate) fn find(conn: &mut PgConnection, path: &[String], names: &[&str]) -> Result<Vec<Found>> {
    Ok(diesel::sql_query(include_str!("home.sql"))
        .bind::<Array<Text>, _>(path)
        .bind::<Array<Text>, _>(names)
        .load(conn)?)
}

/// The schema of `api_keys`. If that table does not exist, the schema of `proxy_calls`; otherwise the first schema of the
/// search path.
pub(crate) fn schema_of(found: &[Found], path: &[String]) -> Option<String> {
    ["api_keys", "proxy_calls"]
        .iter()
        .find_map(|name| found.iter().find(|table| table.name == *name))
        .map(|table| &table.schema)
        .or(path.first())
        .cloned()
}
