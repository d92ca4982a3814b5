//! Properties of the tables that hinder a step or a method, and partitions of other roles.

use super::super::Effect;
use super::super::facts::Hindrance;
use super::super::object::WIDENING;
use super::{Verdict, View};
use crate::steps::quoted;

pub(super) fn judge(view: &View<'_>, verdict: &mut Verdict) {
    for hindrance in &view.home.hindrances {
        one(view, hindrance, verdict);
    }
    partitions(view, verdict);
    if let Some(tablespace) = view.home.session.closed_tablespace.as_deref().filter(|_| creates_storage(view))
    {
        verdict.add(
            Effect::BlocksMigration,
            format!("CREATE on tablespace {tablespace}"),
            format!("it is the default_tablespace, in which {} may create nothing", view.home.session.role),
            format!(
                "GRANT CREATE ON TABLESPACE {} TO {}, or SET default_tablespace = ''",
                quoted(tablespace),
                quoted(&view.home.session.role)
            ),
        );
    }
}

fn one(view: &View<'_>, Hindrance { kind, table, name, action }: &Hindrance, verdict: &mut Verdict) {
    let changes_columns = view.is_pending("api_keys_revision") || view.is_pending(WIDENING);
    let (effect, what, why) = match kind.as_str() {
        "row_type" if changes_columns => (
            Effect::BlocksMigration,
            format!("column {name}"),
            format!("its type is made of the rows of {table}, and PostgreSQL changes no column of {table} as long as it is"),
        ),
        "typed_table" if changes_columns => (
            Effect::BlocksMigration,
            format!("table {table}"),
            format!("it is a table of the type {name}, whose columns cannot change"),
        ),
        "partition" if changes_columns => (
            Effect::BlocksMigration,
            format!("table {table}"),
            format!("it is a partition of {name}, whose columns it must have"),
        ),
        "constraint" if view.is_pending(&format!("{table}_created_at_check")) => (
            Effect::BlocksMigration,
            format!("constraint {name} on {table}"),
            "another constraint has this name, which the migration needs for a while".into(),
        ),
        "collation" if name == "key_prefix" && view.is_pending("api_keys_prefix") => (
            Effect::BlocksMigration,
            format!("column {table}.{name}"),
            "its collation is not deterministic, which the indexes on prefixes cannot use".into(),
        ),
        "collation" => (
            Effect::BlocksMethods,
            format!("column {table}.{name}"),
            "its collation is not deterministic, so a method takes different texts for the same".into(),
        ),
        "collations" => (
            Effect::BlocksMethods,
            format!("column {table}.{name}"),
            "the same id in the other table has another collation, so that PostgreSQL refuses to compare them".into(),
        ),
        "required_column" => (
            Effect::BlocksMethods,
            format!("column {table}.{name}"),
            format!(
                "it is NOT NULL without a default, and {} does not know it",
                if table == "api_keys" { "the crate's insert of a key" } else { "insert_calls" }
            ),
        ),
        "unlogged_table" => (
            Effect::Degrades,
            format!("table {table}"),
            "it is unlogged: a crash of the server empties it, and nothing records that".into(),
        ),
        "subscription" => (
            Effect::BlocksMethods,
            format!("subscription {name} of {table}"),
            "its rows are replicated, and no trigger fires for them: changes of keys have no events here, and calls are \
             not counted"
                .into(),
        ),
        _ => return,
    };
    let action = if kind == "subscription" {
        "Follow and count on the publisher: see docs/events.md and docs/usage.md".into()
    } else {
        action.clone()
    };
    verdict.add(effect, what, why, action);
}

fn partitions(view: &View<'_>, verdict: &mut Verdict) {
    let foreign: Vec<_> =
        view.home.parts.iter().filter(|part| part.kind == "foreign").map(|part| part.name.as_str()).collect();
    if !foreign.is_empty() {
        verdict.add(
            Effect::Degrades,
            "partitions of proxy_calls",
            format!(
                "{} are foreign tables, on which no index can be created, and what is written on the foreign server \
                 itself is not counted",
                foreign.join(", ")
            ),
            "Create the indexes on the foreign server, and write through this one",
        );
    }
    if !changes(view, &["column", "constraint", "index", "trigger"]) {
        return;
    }
    let role = quoted(&view.home.session.role);
    for part in &view.home.parts {
        match part.kind.as_str() {
            "owner" => verdict.add(
                Effect::BlocksMigration,
                format!("ownership of {}", part.name),
                format!("only the owner {} may change the partition", part.owner),
                match view.home.table("proxy_calls") {
                    Some(calls) => format!("ALTER TABLE {} OWNER TO {}", part.name, quoted(&calls.owner)),
                    None => format!("Migrate as {}", part.owner),
                },
            ),
            "schema" if changes(view, &["index"]) => verdict.add(
                Effect::BlocksMigration,
                format!("CREATE on schema {}", part.name),
                format!(
                    "the role {} must create indexes in the schema, in which proxy_calls has partitions",
                    view.home.session.role
                ),
                format!("GRANT USAGE, CREATE ON SCHEMA {} TO {role}", part.name),
            ),
            _ => {}
        }
    }
}

/// Whether a pending step creates or changes such an object of `proxy_calls`.
fn changes(view: &View<'_>, kinds: &[&str]) -> bool {
    view.facts.expected.iter().any(|expected| {
        expected.table == "proxy_calls"
            && kinds.contains(&expected.kind)
            && view.is_pending(expected.defined_by)
    })
}

fn creates_storage(view: &View<'_>) -> bool {
    view.facts.expected.iter().any(|expected| expected.is_relation() && view.is_pending(expected.created_by))
}
