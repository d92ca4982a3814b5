//! Diesel's table of applied migrations, in the schema of the tables.

use diesel::migration::MigrationConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Text};

use super::step::{Step, quoted};
use crate::Result;

const TABLE: &str = "__diesel_schema_migrations";

/// The records of applied migrations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    /// The recorded versions. They may include versions of other applications.
    Read(Vec<String>),
    /// The current role may not read the records.
    Hidden,
}

#[derive(QueryableByName)]
struct Readable {
    #[diesel(sql_type = Bool)]
    is_readable: bool,
}

#[derive(QueryableByName)]
struct Versions {
    #[diesel(sql_type = Array<Text>)]
    versions: Vec<String>,
}

impl Records {
    /// Reads the records. It does not create the table.
    pub(crate) fn read(conn: &mut PgConnection, schema: &str) -> Result<Self> {
        let table: Option<Readable> = diesel::sql_query(include_str!("records.sql"))
            .bind::<Text, _>(schema)
            .bind::<Text, _>(TABLE)
            .get_result(conn)
            .optional()?;
        match table {
            None => Ok(Self::Read(Vec::new())),
            Some(Readable { is_readable: false }) => Ok(Self::Hidden),
            Some(_) => {
                let sql = format!(
                    "SELECT ARRAY(SELECT version::pg_catalog.text FROM {}.{TABLE}) AS versions",
                    quoted(schema)
                );
                let read: Versions = diesel::sql_query(sql).get_result(conn)?;
                Ok(Self::Read(read.versions))
            }
        }
    }

    pub(crate) fn has(&self, step: &Step) -> bool {
        match self {
            Self::Read(versions) => versions.contains(&step.version()),
            Self::Hidden => true,
        }
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
