//! Where the tables are that a session means: the schema that every look-up and every new object is bound to.

use diesel::prelude::*;
use diesel::sql_types::{Array, Oid, Text};

use crate::Result;

/// A table as the session's search path finds it.
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

/// The first table of each name on the path.
pub(crate) fn find(conn: &mut PgConnection, path: &[String], names: &[&str]) -> Result<Vec<Found>> {
    Ok(diesel::sql_query(include_str!("home.sql"))
        .bind::<Array<Text>, _>(path)
        .bind::<Array<Text>, _>(names)
        .load(conn)?)
}

/// The schema of `api_keys`; without it that of `proxy_calls`; without both the path's first.
pub(crate) fn schema_of(found: &[Found], path: &[String]) -> Option<String> {
    ["api_keys", "proxy_calls"]
        .iter()
        .find_map(|name| found.iter().find(|table| table.name == *name))
        .map(|table| &table.schema)
        .or(path.first())
        .cloned()
}
