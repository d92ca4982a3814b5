//! Finds the rows that a pending step would refuse, before anything is changed.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use crate::steps::{Step, quoted};
use crate::{Effect, Obstacle, Result};

/// A property of the rows that a step relies on, and how a violation is reported.
struct Rule {
    /// The title of the step.
    step: &'static str,
    table: &'static str,
    /// Selects the ids of the rows that violate it, in the order in which they are reported.
    ids: &'static str,
    description: &'static str,
    fix: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        step: "api_keys_created_at_not_null",
        table: "api_keys",
        ids: "SELECT id FROM {table} WHERE created_at IS NULL ORDER BY id",
        description: "row(s) with a NULL created_at",
        fix: "Set created_at in these rows",
    },
    Rule {
        step: "proxy_calls_created_at_not_null",
        table: "proxy_calls",
        ids: "SELECT id FROM {table} WHERE created_at IS NULL ORDER BY id",
        description: "row(s) with a NULL created_at",
        fix: "Set created_at in these rows",
    },
    Rule {
        step: "api_keys_key_hash_unique",
        table: "api_keys",
        ids: "SELECT id FROM (
                SELECT id, key_hash, pg_catalog.count(*) OVER (PARTITION BY key_hash) AS sharers FROM {table}
              ) AS hashes
              WHERE sharers OPERATOR(pg_catalog.>) 1 ORDER BY key_hash, id",
        description: "rows that share a key_hash with another",
        fix: "Keep one row of each hash",
    },
];

#[derive(QueryableByName)]
struct Violations {
    #[diesel(sql_type = BigInt)]
    count: i64,
    #[diesel(sql_type = Text)]
    ids: String,
}

/// Searches the tables for rows that one of the steps would refuse. It scans a table once per rule, and
/// blocks nobody. It never reports a hash.
pub(crate) fn violations(
    conn: &mut PgConnection,
    schema: &str,
    steps: &[&'static Step],
    tables: &[&str],
) -> Result<Vec<Obstacle>> {
    let mut found = Vec::new();
    for rule in RULES {
        if !tables.contains(&rule.table) || !steps.iter().any(|step| step.title() == rule.step) {
            continue;
        }
        let table = format!("{}.{}", quoted(schema), rule.table);
        let sql = format!(
            "SELECT pg_catalog.count(*) AS count,
                 coalesce(
                     pg_catalog.string_agg(id, ', ' ORDER BY nth) FILTER (WHERE nth OPERATOR(pg_catalog.<=) 5), ''
                 ) AS ids
             FROM (SELECT id, pg_catalog.row_number() OVER () AS nth FROM ({}) AS bad) AS numbered",
            rule.ids.replace("{table}", &table)
        );
        let bad: Violations = diesel::sql_query(sql).get_result(conn)?;
        if bad.count > 0 {
            found.push(Obstacle {
                name: format!("rows of {}", rule.table),
                why: format!(
                    "{} has {} {} (first ids: {})",
                    rule.table, bad.count, rule.description, bad.ids
                ),
                action: format!("{}, then migrate again", rule.fix),
                effect: Effect::BlocksMigration,
            });
        }
    }
    Ok(found)
}
