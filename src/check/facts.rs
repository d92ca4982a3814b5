//! Reads the facts in one read-only transaction: the catalog, the session, and what else uses the database.

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Nullable, Text};

use super::Expected;
use super::object::{Object, prefix_is_narrow};
use crate::Result;
use crate::steps::{Found, InitialSession, Records, STEPS, find, schema_of};

/// The sequence of the usage.
pub(crate) const FRONTIER: &str = "usage_frontier";

#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct Session {
    #[diesel(sql_type = Text)]
    pub(crate) database: String,
    #[diesel(sql_type = Text)]
    pub(crate) role: String,
    #[diesel(sql_type = Bool)]
    pub(crate) is_read_only: bool,
    #[diesel(sql_type = Bool)]
    pub(crate) is_standby: bool,
    #[diesel(sql_type = Text)]
    pub(crate) messages: String,
    #[diesel(sql_type = Text)]
    pub(crate) encoding: String,
    #[diesel(sql_type = Text)]
    pub(crate) replication_role: String,
    #[diesel(sql_type = Bool)]
    pub(crate) may_create: bool,
    /// The owners of the tables to which the current role cannot give new objects of the schema.
    #[diesel(sql_type = Array<Text>)]
    pub(crate) owners_without_create: Vec<String>,
    /// The owners of the tables that may not use the schema.
    #[diesel(sql_type = Array<Text>)]
    pub(crate) owners_without_usage: Vec<String>,
    /// The roles without the rights of the tables' owners that may create objects in the schema.
    #[diesel(sql_type = Array<Text>)]
    pub(crate) other_creators: Vec<String>,
    #[diesel(sql_type = Text)]
    pub(crate) schema_owner: String,
    /// The schema as SQL writes it.
    #[diesel(sql_type = Text)]
    pub(crate) quoted_schema: String,
    /// The `default_tablespace` if the current role may not create objects in it.
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) closed_tablespace: Option<String>,
}

#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct TableFacts {
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Text)]
    pub(crate) owner: String,
    #[diesel(sql_type = Bool)]
    pub(crate) is_owner: bool,
    /// Whether `SET ROLE` to the owner is allowed, also if its rights are not inherited.
    #[diesel(sql_type = Bool)]
    pub(crate) may_set_role: bool,
    /// Makes the current role a member of the owner.
    #[diesel(sql_type = Text)]
    pub(crate) grant_of_owner: String,
    #[diesel(sql_type = Bool)]
    pub(crate) has_hidden_rows: bool,
    #[diesel(sql_type = Array<Text>)]
    pub(crate) publications: Vec<String>,
    /// Itself or its partitions, if they are published and PostgreSQL refuses updates of their rows.
    #[diesel(sql_type = Array<Text>)]
    pub(crate) without_identity: Vec<String>,
    /// The indexes that refuse a second row of the same id at once.
    #[diesel(sql_type = Array<Text>)]
    pub(crate) unique_ids: Vec<String>,
    /// The rules that rewrite its changes.
    #[diesel(sql_type = Array<Text>)]
    pub(crate) rules: Vec<String>,
    /// Tables that inherit from it. Partitions are not among them.
    #[diesel(sql_type = Array<Text>)]
    pub(crate) children: Vec<String>,
    #[diesel(sql_type = Array<Text>)]
    pub(crate) privileges: Vec<String>,
    /// Such as `SELECT id`: only `SELECT` and `UPDATE`.
    #[diesel(sql_type = Array<Text>)]
    pub(crate) column_privileges: Vec<String>,
}

/// A property of the tables that hinders a step or a method.
#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct Hindrance {
    #[diesel(sql_type = Text)]
    pub(crate) kind: String,
    #[diesel(sql_type = Text)]
    pub(crate) table: String,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Text)]
    pub(crate) action: String,
}

/// A relation or a type that has a name of the migrations.
#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct Named {
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Text)]
    pub(crate) kind: String,
}

/// A partition of `proxy_calls`, or the schema of one, that hinders a step or a method.
#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct Part {
    #[diesel(sql_type = Text)]
    pub(crate) kind: String,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Text)]
    pub(crate) owner: String,
}

#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct Neighbour {
    #[diesel(sql_type = Text)]
    pub(crate) kind: String,
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Text)]
    pub(crate) action: String,
}

/// An object that has a name of the migrations, and its owner.
#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct Owned {
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    #[diesel(sql_type = Text)]
    pub(crate) owner: String,
}

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

/// The objects in the schema of the tables.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) schema: String,
    pub(crate) session: Session,
    pub(crate) objects: Vec<Object>,
    pub(crate) tables: Vec<TableFacts>,
    /// The objects that depend on `key_prefix`, if the column is too narrow.
    pub(crate) dependents: Vec<String>,
    pub(crate) neighbours: Vec<Neighbour>,
    pub(crate) hindrances: Vec<Hindrance>,
    /// Empty if no step is left.
    pub(crate) named: Vec<Named>,
    pub(crate) parts: Vec<Part>,
    /// The objects that an unrelated role owns.
    pub(crate) foreign_owned: Vec<Owned>,
    pub(crate) records: Records,
}

#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) version: String,
    pub(crate) expected: Vec<Expected>,
    /// The first table of each expected name on the search path.
    pub(crate) found: Vec<Found>,
    /// `None` if no schema of the search path exists.
    pub(crate) home: Option<Home>,
}

impl Facts {
    /// Reads everything in one snapshot. The settings last for the transaction.
    pub(crate) fn gather(conn: &mut PgConnection, initial: &InitialSession) -> Result<Self> {
        conn.build_transaction().repeatable_read().read_only().run(|conn| {
            conn.batch_execute(
                // JIT compilation would take longer than the queries.
                "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL statement_timeout = 0;
                 SET LOCAL quote_all_identifiers = off; SET LOCAL standard_conforming_strings = on;
                 SET LOCAL jit = off",
            )?;
            let expected = Expected::all();
            let found = find(conn, &initial.path, &Expected::names(&expected, "table"))?;
            let home = match schema_of(&found, &initial.path) {
                Some(schema) => Some(Home::gather(conn, schema, &expected, initial.version_number)?),
                None => None,
            };
            Ok(Self { version: initial.version.clone(), expected, found, home })
        })
    }
}

/// PostgreSQL 14 cannot publish a schema.
fn tables_sql(version_number: i32) -> String {
    let sql = include_str!("tables.sql");
    let none = "(SELECT 0::oid AS pnpubid, 0::oid AS pnnspid WHERE false) AS schemas";
    if version_number < 150_000 { sql.replace("pg_publication_namespace", none) } else { sql.to_owned() }
}

impl Home {
    fn gather(
        conn: &mut PgConnection,
        schema: String,
        expected: &[Expected],
        version_number: i32,
    ) -> Result<Self> {
        let tables = Expected::names(expected, "table");
        let objects: Vec<Object> = diesel::sql_query(include_str!("catalog.sql"))
            .bind::<Text, _>(&schema)
            .bind::<Array<Text>, _>(&tables)
            .bind::<Array<Text>, _>(Expected::names(expected, "index"))
            .bind::<Array<Text>, _>(Expected::names(expected, "function"))
            .load(conn)?;
        let columns: Vec<String> = expected
            .iter()
            .filter(|expected| expected.kind == "column")
            .map(|column| format!("{}.{}", column.table, column.name))
            .collect();
        let mut hindrances: Vec<Hindrance> = diesel::sql_query(include_str!("hindrances.sql"))
            .bind::<Text, _>(&schema)
            .bind::<Array<Text>, _>(columns)
            .load(conn)?;
        let mut named = Vec::new();
        let records = Records::read(conn, &schema)?;
        let is_narrow = prefix_is_narrow(expected, &objects);
        let has_table =
            |name: &&str| objects.iter().any(|object| object.kind == "table" && object.name == **name);
        if is_narrow || !tables.iter().all(has_table) || !STEPS.iter().all(|step| records.has(step)) {
            hindrances.extend(
                diesel::sql_query(include_str!("hindered_steps.sql"))
                    .bind::<Text, _>(&schema)
                    .load::<Hindrance>(conn)?,
            );
            let relations = expected.iter().filter(|expected| expected.is_relation());
            let relations: Vec<&str> = relations.map(|expected| expected.name).chain([FRONTIER]).collect();
            named = diesel::sql_query(include_str!("names.sql"))
                .bind::<Text, _>(&schema)
                .bind::<Array<Text>, _>(relations)
                .load(conn)?;
        }
        Ok(Self {
            session: diesel::sql_query(include_str!("session.sql"))
                .bind::<Text, _>(&schema)
                .get_result(conn)?,
            tables: diesel::sql_query(tables_sql(version_number))
                .bind::<Text, _>(&schema)
                .bind::<Array<Text>, _>(&tables)
                .load(conn)?,
            dependents: if is_narrow {
                names(conn, include_str!("dependents.sql"), &schema)?
            } else {
                Vec::new()
            },
            foreign_owned: diesel::sql_query(include_str!("owners.sql"))
                .bind::<Text, _>(&schema)
                .bind::<Array<Text>, _>(&tables)
                .bind::<Array<Text>, _>(Expected::names(expected, "function"))
                .load(conn)?,
            neighbours: diesel::sql_query(include_str!("neighbours.sql")).load(conn)?,
            hindrances,
            named,
            parts: if objects.iter().any(Object::is_partitioned) {
                diesel::sql_query(include_str!("partitions.sql")).bind::<Text, _>(&schema).load(conn)?
            } else {
                Vec::new()
            },
            records,
            objects,
            schema,
        })
    }

    /// Whether the step that makes it is recorded.
    pub(crate) fn records_have(&self, expected: &Expected) -> bool {
        STEPS.iter().any(|step| step.title() == expected.created_by && self.records.has(step))
    }

    pub(crate) fn table(&self, name: &str) -> Option<&TableFacts> {
        self.tables.iter().find(|table| table.name == name)
    }
}

/// The names that a query finds in a schema.
fn names(conn: &mut PgConnection, sql: &str, schema: &str) -> Result<Vec<String>> {
    let names: Vec<Name> = diesel::sql_query(sql).bind::<Text, _>(schema).load(conn)?;
    Ok(names.into_iter().map(|row| row.name).collect())
}
