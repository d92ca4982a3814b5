//! Builds the index of a concurrent step, whatever an earlier try or another hand left of it.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Nullable, Oid, Text};

use super::failure::StepFailed;
use super::partitions;
use super::watch::Watch;
use crate::steps::{Index, quoted};
use crate::{Error, Result};

/// A table that an index is built on.
#[derive(Clone, Debug, QueryableByName)]
pub(super) struct Table {
    #[diesel(sql_type = Oid)]
    pub(super) oid: u32,
    #[diesel(sql_type = Text)]
    pub(super) schema: String,
    #[diesel(sql_type = Text)]
    pub(super) name: String,
    #[diesel(sql_type = Bool)]
    pub(super) is_partitioned: bool,
}

impl Table {
    pub(super) fn find(conn: &mut PgConnection, schema: &str, name: &str) -> Result<Option<Self>> {
        Ok(diesel::sql_query(include_str!("index/table.sql"))
            .bind::<Text, _>(schema)
            .bind::<Text, _>(name)
            .get_result(conn)
            .optional()?)
    }

    pub(super) fn qualified(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// What has the name of an index.
#[derive(Debug, QueryableByName)]
pub(super) struct Existing {
    /// `None`: it is no index.
    #[diesel(sql_type = Nullable<Oid>)]
    pub(super) table: Option<u32>,
    #[diesel(sql_type = Bool)]
    pub(super) is_valid: bool,
    /// Another session may be building it.
    #[diesel(sql_type = Bool)]
    pub(super) is_being_built: bool,
    #[diesel(sql_type = Bool)]
    is_unique: bool,
    /// From `USING` on.
    #[diesel(sql_type = Text)]
    definition: String,
}

impl Existing {
    pub(super) fn find(conn: &mut PgConnection, schema: &str, name: &str) -> Result<Option<Self>> {
        Ok(diesel::sql_query(include_str!("index/existing.sql"))
            .bind::<Text, _>(schema)
            .bind::<Text, _>(name)
            .get_result(conn)
            .optional()?)
    }

    pub(super) fn is(&self, index: &Index, table: &Table) -> bool {
        self.table == Some(table.oid)
            && self.is_unique == index.is_unique
            && self.definition == index.definition
    }
}

/// Sees to it that the index exists, is valid and is what the step describes.
pub(super) fn ensure(
    conn: &mut PgConnection,
    watch: &mut Watch<'_, '_>,
    schema: &str,
    index: &Index,
) -> Result<()> {
    let Some(table) = Table::find(conn, schema, &index.table)? else {
        return Err(StepFailed::because(
            &watch.step,
            format!("there is no table {}.{}", schema, index.table),
        ));
    };
    if table.is_partitioned {
        partitions::ensure(conn, watch, &table, &index.name, index)
    } else {
        ensure_on(conn, watch, &table, &index.name, index)
    }
}

/// The same for one table that is not partitioned.
pub(super) fn ensure_on(
    conn: &mut PgConnection,
    watch: &mut Watch<'_, '_>,
    table: &Table,
    name: &str,
    index: &Index,
) -> Result<()> {
    let deadline = watch.deadline();
    loop {
        match Existing::find(conn, &table.schema, name)? {
            None => build(conn, watch, table, name, index)?,
            Some(other) if !other.is(index, table) => return Err(taken(watch, table, name, index)),
            Some(index) if index.is_valid => return Ok(()),
            Some(index) if index.is_being_built => watch.while_others_build(conn, table.oid, deadline)?,
            Some(_) => drop_remains(conn, watch, table, name)?,
        }
    }
}

pub(super) fn taken(watch: &Watch<'_, '_>, table: &Table, name: &str, index: &Index) -> Error {
    let wanted = index.create("CONCURRENTLY", &quoted(name), "", &table.qualified());
    StepFailed::because(
        &watch.step,
        format!("{}.{name} is another index or relation than the one that is wanted: {wanted}", table.schema),
    )
}

fn build(
    conn: &mut PgConnection,
    watch: &mut Watch<'_, '_>,
    table: &Table,
    name: &str,
    index: &Index,
) -> Result<()> {
    watch.until_a_build_can_go_on(conn, table.oid)?;
    let sql = index.create("CONCURRENTLY", &quoted(name), "", &table.qualified());
    let built = watch.with_long_locks(conn, table.oid, &sql);
    match built {
        Ok(()) => Ok(()),
        // Somebody else was faster: what that is, the next look tells.
        Err(Error::Query(_))
            if Existing::find(conn, &table.schema, name)?.is_some_and(|found| found.is_valid) =>
        {
            Ok(())
        }
        Err(error) => {
            // An invalid unique index may refuse rows already. What stopped the build matters more than a
            // failure to clean up, which the next call repeats.
            let _ = drop_now(conn, table, name);
            Err(error)
        }
    }
}

fn drop_remains(conn: &mut PgConnection, watch: &mut Watch<'_, '_>, table: &Table, name: &str) -> Result<()> {
    watch.until_a_build_can_go_on(conn, table.oid)?;
    watch.with_long_locks(conn, table.oid, &drop_of(table, name))
}

/// Drops the index. The server drops that of a partitioned table only in a transaction, with its parts.
pub(super) fn remove(
    conn: &mut PgConnection,
    watch: &mut Watch<'_, '_>,
    schema: &str,
    index: &Index,
) -> Result<()> {
    let Some(table) = Table::find(conn, schema, &index.table)? else { return Ok(()) };
    if !table.is_partitioned {
        return watch.with_long_locks(conn, table.oid, &drop_of(&table, &index.name));
    }
    let sql = format!("DROP INDEX IF EXISTS {}.{}", quoted(schema), quoted(&index.name));
    partitions::in_short_locks(conn, watch, &table, &sql)
}

fn drop_now(conn: &mut PgConnection, table: &Table, name: &str) -> Result<()> {
    conn.batch_execute("SET lock_timeout = '1s'")?;
    let dropped = diesel::sql_query(drop_of(table, name)).execute(conn);
    conn.batch_execute("SET lock_timeout = 0")?;
    dropped?;
    Ok(())
}

fn drop_of(table: &Table, name: &str) -> String {
    format!("DROP INDEX CONCURRENTLY IF EXISTS {}.{}", quoted(&table.schema), quoted(name))
}
