//! Diesel's table of applied migrations, in the schema of the tables.

use diesel::migration::MigrationConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Text};

use super::step::{Step, quoted};
use crate::Result;

pub(crate) const TABLE: &str = "__diesel_schema_migrations";

/// The records of applied migrations.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    /// The recorded versions, which may include versions of other applications. `None` if the current role may not
    /// read them.
    versions: Option<Vec<String>>,
    /// Whether the current role may add to them, if the table exists.
    pub(crate) are_writable: bool,
    /// Whether the relation of this name is Diesel's table, if there is one.
    pub(crate) are_diesels: bool,
}

#[derive(QueryableByName)]
struct Table {
    #[diesel(sql_type = Bool)]
    is_readable: bool,
    #[diesel(sql_type = Bool)]
    is_writable: bool,
    #[diesel(sql_type = Bool)]
    is_diesels: bool,
}

#[derive(QueryableByName)]
struct Versions {
    #[diesel(sql_type = Array<Text>)]
    versions: Vec<String>,
}

impl Records {
    /// Reads the records. It does not create the table.
    pub(crate) fn read(conn: &mut PgConnection, schema: &str) -> Result<Self> {
        let table: Option<Table> = diesel::sql_query(include_str!("records.sql"))
            .bind::<Text, _>(schema)
            .bind::<Text, _>(TABLE)
            .get_result(conn)
            .optional()?;
        let Some(table) = table else {
            return Ok(Self { versions: Some(Vec::new()), are_writable: true, are_diesels: true });
        };
        let versions = if !table.is_diesels {
            Some(Vec::new())
        } else if table.is_readable {
            let sql = format!(
                "SELECT ARRAY(SELECT version::pg_catalog.text FROM {}.{TABLE}) AS versions",
                quoted(schema)
            );
            Some(diesel::sql_query(sql).get_result::<Versions>(conn)?.versions)
        } else {
            None
        };
        Ok(Self { versions, are_writable: table.is_writable, are_diesels: table.is_diesels })
    }

    pub(crate) fn are_hidden(&self) -> bool {
        self.versions.is_none()
    }

    /// Whether the step is recorded. If the records are hidden, it is taken as recorded.
    pub(crate) fn has(&self, step: &Step) -> bool {
        self.versions.as_ref().is_none_or(|versions| versions.contains(&step.version()))
    }
}

/// Creates the table if it does not exist. The search path must lead to the schema.
pub(crate) fn set_up(conn: &mut PgConnection) -> Result<()> {
    conn.setup()?;
    Ok(())
}

pub(crate) fn add(conn: &mut PgConnection, schema: &str, step: &Step) -> Result<()> {
    let sql = format!("INSERT INTO {}.{TABLE} (version) VALUES ($1) ON CONFLICT DO NOTHING", quoted(schema));
    diesel::sql_query(sql).bind::<Text, _>(step.version()).execute(conn)?;
    Ok(())
}

pub(crate) fn remove(conn: &mut PgConnection, schema: &str, step: &Step) -> Result<()> {
    let sql = format!("DELETE FROM {}.{TABLE} WHERE version OPERATOR(pg_catalog.=) $1", quoted(schema));
    diesel::sql_query(sql).bind::<Text, _>(step.version()).execute(conn)?;
    Ok(())
}
