//! Tables, columns, indexes, constraints, triggers and functions.

use super::super::column::{self, Difference};
use super::super::object::{Object, WIDENING, is_named, prefix_is_narrow};
use super::super::{Effect, Expected};
use super::{Verdict, View};
use crate::steps::{Step, quoted};

const MIGRATE: &str = "Call `migrate`, which repeats the step";

pub(super) fn judge(view: &View<'_>, verdict: &mut Verdict) {
    widening(view, verdict);
    for expected in &view.facts.expected {
        if expected.may_differ()
            || expected.kind != "table" && !view.has_table(expected.table) && !expected.table.is_empty()
        {
            continue;
        }
        let named: Vec<&Object> =
            view.home.objects.iter().filter(|object| is_named(expected, object)).collect();
        match expected.kind {
            "table" => table(view, expected, named.first().copied(), verdict),
            "column" => column(view, expected, named.first().copied(), verdict),
            _ => other(view, expected, &named, verdict),
        }
    }
    for late in view.home.objects.iter().filter(|object| object.kind == "late_trigger") {
        verdict.add(
            Effect::BlocksMethods,
            format!("trigger {} on {}", late.name, late.table),
            "it fires after ~api_keys_compare, so what it changes of a key is not recorded",
            format!(
                "ALTER TRIGGER {} ON {} RENAME TO a name that sorts before it",
                quoted(&late.name),
                view.qualified(&late.table)
            ),
        );
    }
}

fn widening(view: &View<'_>, verdict: &mut Verdict) {
    let is_narrow = prefix_is_narrow(&view.facts.expected, &view.home.objects);
    if is_narrow && !view.home.dependents.is_empty() {
        verdict.add(
            Effect::Degrades,
            "column api_keys.key_prefix",
            format!(
                "it is too narrow for a prefix of 12 characters, and its type cannot change because of {}: \
                 `migrate` leaves it as it is",
                view.home.dependents.join(", ")
            ),
            "Drop those, call `migrate`, and create them again",
        );
    }
    let adds_a_column = view.facts.expected.iter().any(|expected| {
        expected.kind == "column"
            && expected.table == "api_keys"
            && expected.created_by != "create_api_keys"
            && view.is_pending(expected.created_by)
            && !view.home.objects.iter().any(|object| is_named(expected, object))
    });
    if view.has_table("api_keys") && (adds_a_column || is_narrow && view.is_pending(WIDENING)) {
        verdict.add(
            Effect::Degrades,
            "prepared statements",
            "a session that prepared `SELECT *` or a statement that returns key_prefix gets \
             `cached plan must not change result type` after the migration",
            "Restart the service's connection pools after `migrate`, or run `DEALLOCATE ALL` in each session",
        );
    }
}

fn table(view: &View<'_>, expected: &Expected, found: Option<&Object>, verdict: &mut Verdict) {
    let name = format!("table {}", expected.name);
    match found.map(|object| object.definition.as_str()) {
        Some("r") => {}
        Some("p") if expected.name == "proxy_calls" => {}
        Some("p") => verdict.add(
            Effect::BlocksMigration,
            name,
            "it is partitioned, and its unique indexes do not hold across partitions",
            "Use a table that is not partitioned",
        ),
        Some(_) => verdict.add(
            Effect::BlocksMigration,
            name,
            "it is a view or a foreign table, which has neither indexes nor row locks",
            format!("Put the schema of the table itself before {} on the search path", view.home.schema),
        ),
        None if view.is_pending(expected.created_by) && !view.home.records_have(expected) => {}
        None => verdict.add(Effect::BlocksMethods, name, missing(view, expected), MIGRATE),
    }
}

fn column(view: &View<'_>, expected: &Expected, found: Option<&Object>, verdict: &mut Verdict) {
    let name = format!("column {}.{}", expected.table, expected.name);
    let is_made_with_the_table = expected.created_by == format!("create_{}", expected.table)
        || view.facts.expected.iter().any(|table| {
            table.kind == "table" && table.name == expected.table && table.created_by == expected.created_by
        });
    let is_to_be_made = view.is_pending(expected.created_by) && !view.home.records_have(expected);
    let Some(found) = found else {
        if is_made_with_the_table {
            verdict.add(
                if is_to_be_made { Effect::BlocksMigration } else { Effect::BlocksMethods },
                name,
                "the table has no such column",
                column::add(&view.qualified(expected.table), expected.name, expected.definition),
            );
        } else if !is_to_be_made {
            verdict.add(Effect::BlocksMethods, name, missing(view, expected), MIGRATE);
        }
        return;
    };
    if is_to_be_made && !is_made_with_the_table && found.definition != expected.definition {
        verdict.add(
            Effect::BlocksMigration,
            name,
            format!("the table has a column of this name already: {}", found.definition),
            format!(
                "Rename it: ALTER TABLE {} RENAME COLUMN {} TO another name",
                view.qualified(expected.table),
                expected.name
            ),
        );
        return;
    }
    let alter = format!("ALTER TABLE {} ALTER COLUMN {}", view.qualified(expected.table), expected.name);
    let type_of_it = format!("{}{}", domain_of(found), found.definition);
    if found.definition.contains(" GENERATED") {
        verdict.add(
            Effect::BlocksMethods,
            name.clone(),
            "it is generated, so that the methods that write it fail",
            format!("{alter} DROP EXPRESSION"),
        );
    }
    match column::difference(expected.definition, &found.definition) {
        None => {}
        Some(Difference::Type) => verdict.add(
            if is_to_be_made { Effect::BlocksMigration } else { Effect::BlocksMethods },
            name,
            format!("its type is {type_of_it}, and the crate reads {}", expected.definition),
            format!(
                "{}, which rewrites the table. Drop foreign keys, views, defaults and an identity of the column before",
                column::alter(&view.qualified(expected.table), expected.name, expected.definition, &found.definition)
            ),
        ),
        // A pending step changes it.
        Some(_)
            if expected
                .step()
                .is_some_and(|step| view.pending.contains(&step) && !view.home.records.has(step)) => {}
        Some(Difference::Narrow) if expected.defined_by == WIDENING && !view.home.dependents.is_empty() => {}
        Some(Difference::Narrow) => verdict.add(
            Effect::Degrades,
            name,
            format!("it is {type_of_it}, too narrow for what the crate writes"),
            format!("{alter} TYPE {}", expected.definition.split(" NOT NULL").next().unwrap_or_default()),
        ),
        Some(Difference::Nullable) => verdict.add(
            Effect::Degrades,
            name,
            "it may be NULL, and a row with a NULL there cannot be read",
            format!("{alter} SET NOT NULL"),
        ),
    }
}

/// A column of a domain is judged by the base type.
fn domain_of(column: &Object) -> String {
    if column.flaw.is_empty() { String::new() } else { format!("the domain {} over ", column.flaw) }
}

/// An index, a constraint, a trigger or a function.
fn other(view: &View<'_>, expected: &Expected, named: &[&Object], verdict: &mut Verdict) {
    let name = match expected.kind {
        "index" | "function" => format!("{} {}", expected.kind, expected.name),
        kind => format!("{kind} {} on {}", expected.name, expected.table),
    };
    let fitting = named
        .iter()
        .find(|object| object.definition == expected.definition && (object.table == expected.table));
    let is_to_be_made = view.is_pending(expected.created_by) && !view.home.records_have(expected);
    match (fitting, named.first()) {
        (Some(object), _) if object.flaw.is_empty() || is_to_be_made || expected.is_optional => {}
        (Some(object), _) => flawed(view, expected, object, name, verdict),
        (None, Some(object)) => verdict.add(
            if is_to_be_made { Effect::BlocksMigration } else { effect_of(expected) },
            name,
            format!(
                "another {} has this name ({}), and the crate needs this one: {}",
                expected.kind,
                if object.table == expected.table {
                    object.definition.clone()
                } else {
                    format!("on {}", object.table)
                },
                wanted(view, expected)
            ),
            drop_of(view, expected, object),
        ),
        (None, None) if is_to_be_made => (),
        (None, None) => verdict.add(
            effect_of(expected),
            name,
            missing(view, expected),
            match expected.kind {
                "index" => format!("{MIGRATE}: {}", wanted(view, expected)),
                _ => MIGRATE.into(),
            },
        ),
    }
}

fn flawed(view: &View<'_>, expected: &Expected, object: &Object, name: String, verdict: &mut Verdict) {
    let table = view.qualified(expected.table);
    let (why, action) = match expected.kind {
        "trigger" => (
            format!("it is {}, so not every change is recorded", object.flaw),
            format!("ALTER TABLE {table} ENABLE TRIGGER {}", quoted(expected.name)),
        ),
        "constraint" => (
            "it is not validated: it holds for new rows only".into(),
            format!("Correct the rows, then ALTER TABLE {table} VALIDATE CONSTRAINT {}", expected.name),
        ),
        _ => (
            format!("it cannot be used: {}", object.flaw),
            "Call `migrate`: it builds the index again".into(),
        ),
    };
    verdict.add(effect_of(expected), name, why, action);
}

fn missing(view: &View<'_>, expected: &Expected) -> String {
    if view.home.records.are_hidden() {
        return format!("the object that the migration {} creates is missing", expected.created_by);
    }
    format!("the migration {} is recorded, but the object that it creates is missing", expected.created_by)
}

/// Without an index everything still works. Without a trigger, changes are not recorded.
fn effect_of(expected: &Expected) -> Effect {
    match expected.kind {
        "index" | "constraint" => Effect::Degrades,
        _ => Effect::BlocksMethods,
    }
}

fn wanted(view: &View<'_>, expected: &Expected) -> String {
    match expected.step().and_then(Step::index) {
        Some(index) => index.create(
            "CONCURRENTLY",
            &quoted(&index.name),
            "",
            &format!("{}.{}", quoted(&view.home.schema), quoted(&index.table)),
        ),
        None => expected.definition.to_owned(),
    }
}

fn is_of_a_constraint(view: &View<'_>, index: &Object) -> bool {
    let mut objects = view.home.objects.iter();
    objects
        .any(|object| object.kind == "constraint" && object.table == index.table && object.name == index.name)
}

fn drop_of(view: &View<'_>, expected: &Expected, object: &Object) -> String {
    let name = quoted(expected.name);
    let qualified = format!("{}.{name}", quoted(&view.home.schema));
    let table = format!("{}.{}", quoted(&view.home.schema), quoted(expected.table));
    match (expected.kind, object.definition.as_str()) {
        ("index", "no index") => format!("Rename the relation {qualified}"),
        ("index", _) if is_of_a_constraint(view, object) => {
            let table = format!("{}.{}", quoted(&view.home.schema), quoted(&object.table));
            format!("ALTER TABLE {table} DROP CONSTRAINT {name}, then call `migrate`")
        }
        ("index", _) => format!("DROP INDEX CONCURRENTLY {qualified} or rename it, then call `migrate`"),
        ("trigger", _) => format!("ALTER TRIGGER {name} ON {table} RENAME TO another name, or drop it"),
        ("constraint", _) => {
            format!("ALTER TABLE {table} RENAME CONSTRAINT {name} TO another name, or drop it")
        }
        _ => format!("ALTER FUNCTION {qualified} RENAME TO another name, or drop it"),
    }
}
