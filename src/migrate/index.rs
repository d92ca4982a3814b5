//! Builds the index of a concurrent step. It handles what an interrupted build or another session may have left.

use diesel::connection::SimpleConnection;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Nullable, Oid, Text};

use super::failure::StepFailed;
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
        find(conn, include_str!("index/table.sql"), schema, name)
    }

    pub(super) fn qualified(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// The object that has a given name in a schema.
fn find<T: QueryableByName<Pg> + 'static>(
    conn: &mut PgConnection,
    sql: &str,
    schema: &str,
    name: &str,
) -> Result<Option<T>> {
    let query = diesel::sql_query(sql).bind::<Text, _>(schema).bind::<Text, _>(name);
    Ok(query.get_result(conn).optional()?)
}

/// The object that has the name of the index.
#[derive(Debug, QueryableByName)]
pub(super) struct Existing {
    /// `None` if it is not an index.
    #[diesel(sql_type = Nullable<Oid>)]
    pub(super) table: Option<u32>,
    #[diesel(sql_type = Bool)]
    pub(super) is_valid: bool,
    /// Another session may be building it.
    #[diesel(sql_type = Bool)]
    pub(super) is_being_built: bool,
    /// At once, not at the end of a transaction.
    #[diesel(sql_type = Bool)]
    is_unique: bool,
    /// The constraint that it belongs to.
    #[diesel(sql_type = Nullable<Text>)]
    constraint: Option<String>,
    /// From `USING` on.
    #[diesel(sql_type = Text)]
    definition: String,
}

impl Existing {
    fn find(conn: &mut PgConnection, schema: &str, name: &str) -> Result<Option<Self>> {
        find(conn, include_str!("index/existing.sql"), schema, name)
    }

    pub(super) fn is(&self, index: &Index, table: &Table) -> bool {
        self.table == Some(table.oid)
            && self.is_unique == index.is_unique
            && self.definition == index.comparable()
    }
}

/// Builds and drops the index of one step. The methods for partitioned tables are in `partitions`.
pub(super) struct Builder<'a, 'm, 'r> {
    pub(super) conn: &'a mut PgConnection,
    pub(super) watch: &'a mut Watch<'m, 'r>,
    pub(super) index: &'a Index,
}

impl Builder<'_, '_, '_> {
    /// Makes sure that the index exists, is valid and is what the step describes.
    pub(super) fn ensure(&mut self, schema: &str) -> Result<()> {
        let Some(table) = Table::find(self.conn, schema, &self.index.table)? else {
            let reason = format!("there is no table {schema}.{}", self.index.table);
            return Err(StepFailed::because(&self.watch.step, reason));
        };
        self.ensure_on(&table, &self.index.name)
    }

    pub(super) fn ensure_on(&mut self, table: &Table, name: &str) -> Result<()> {
        if table.is_partitioned {
            self.ensure_on_parent(table, name)
        } else {
            self.ensure_on_leaf(table, name)
        }
    }

    fn ensure_on_leaf(&mut self, table: &Table, name: &str) -> Result<()> {
        let deadline = self.watch.deadline();
        loop {
            match self.existing(table, name)? {
                None => self.build(table, name)?,
                Some(other) if !other.is(self.index, table) => return Err(self.taken(table, name)),
                Some(index) if index.is_valid => return Ok(()),
                Some(index) if index.is_being_built => {
                    self.watch.wait_for_other_build(self.conn, table.oid, deadline)?;
                }
                Some(_) => {
                    self.watch.wait_for_older_transactions(self.conn, table.oid)?;
                    self.watch.run_with_long_lock_timeout(self.conn, table.oid, &drop_of(table, name))?;
                }
            }
        }
    }

    pub(super) fn existing(&mut self, table: &Table, name: &str) -> Result<Option<Existing>> {
        Existing::find(self.conn, &table.schema, name)
    }

    pub(super) fn taken(&self, table: &Table, name: &str) -> Error {
        let wanted = self.index.create("CONCURRENTLY", &quoted(name), "", &table.qualified());
        let schema = &table.schema;
        StepFailed::because(
            &self.watch.step,
            format!(
                "{schema}.{name} is not the index that the step builds: {wanted}. \
                 Rename it or drop it, then migrate again"
            ),
        )
    }

    fn build(&mut self, table: &Table, name: &str) -> Result<()> {
        self.watch.wait_for_older_transactions(self.conn, table.oid)?;
        let sql = self.index.create("CONCURRENTLY", &quoted(name), "", &table.qualified());
        match self.watch.run_with_long_lock_timeout(self.conn, table.oid, &sql) {
            Ok(()) => Ok(()),
            // Another session created the index first. The caller checks that index.
            Err(Error::Query(_)) if self.existing(table, name)?.is_some_and(|found| found.is_valid) => Ok(()),
            Err(error) => {
                // Even an invalid unique index can refuse rows, so it is dropped. If that fails, the next call drops
                // it. The error of the build is the one to report.
                let _ = drop_now(self.conn, table, name);
                Err(error)
            }
        }
    }

    /// Drops the index. The index of a partitioned table cannot be dropped concurrently, and is dropped with its parts.
    /// The index of a constraint is not the crate's, and stays.
    pub(super) fn remove(&mut self, schema: &str) -> Result<()> {
        let Some(table) = Table::find(self.conn, schema, &self.index.table)? else { return Ok(()) };
        if self.existing(&table, &self.index.name)?.is_some_and(|existing| existing.constraint.is_some()) {
            return Ok(());
        }
        if !table.is_partitioned {
            return self.watch.run_with_long_lock_timeout(
                self.conn,
                table.oid,
                &drop_of(&table, &self.index.name),
            );
        }
        let sql = format!("DROP INDEX IF EXISTS {}.{}", quoted(schema), quoted(&self.index.name));
        self.run_with_short_lock_timeout(&table, &sql)
    }

    pub(super) fn run_with_short_lock_timeout(&mut self, table: &Table, sql: &str) -> Result<()> {
        let sql = self.watch.in_english(sql);
        self.watch.retry_on_lock_timeout(self.conn, &[table.oid], |conn| {
            conn.transaction(|conn| {
                conn.batch_execute("SET LOCAL lock_timeout = '1s'")?;
                conn.batch_execute(&sql)?;
                Ok(())
            })
        })
    }
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
