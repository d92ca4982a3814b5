//! What a column's definition says: the type, its length, and whether it may be NULL.

/// How a column differs from the one that is expected.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Difference {
    Type,
    Narrow,
    Nullable,
}

/// The first difference that matters. A longer text and an additional NOT NULL do not matter.
pub(super) fn difference(expected: &str, found: &str) -> Option<Difference> {
    if family(expected) != family(found) {
        Some(Difference::Type)
    } else if length(found) < length(expected) {
        Some(Difference::Narrow)
    } else if is_not_null(expected) && !is_not_null(found) {
        Some(Difference::Nullable)
    } else {
        None
    }
}

/// The statement that adds a column. Existing rows need a value before a column without a default can be NOT NULL.
pub(super) fn add(table: &str, name: &str, expected: &str) -> String {
    let definition = expected.replace(" IDENTITY", " GENERATED ALWAYS AS IDENTITY");
    match definition.strip_suffix(" NOT NULL") {
        Some(kind) => format!(
            "ALTER TABLE {table} ADD COLUMN {name} {kind}; set it in each row; \
             ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL"
        ),
        None => format!("ALTER TABLE {table} ADD COLUMN {name} {definition}"),
    }
}

/// The statement that gives the column the expected type.
pub(super) fn alter(table: &str, name: &str, expected: &str, found: &str) -> String {
    let (expected_type, default) =
        (type_of(expected), expected.split_once(" DEFAULT ").map(|(_, default)| default));
    let value = if expected_type == "timestamp with time zone" {
        format!("{name} AT TIME ZONE 'UTC'")
    } else {
        format!("{name}::{expected_type}")
    };
    let alter = format!("ALTER COLUMN {name} TYPE {expected_type} USING {value}");
    match default {
        Some(default) if found.contains(" DEFAULT ") => format!(
            "ALTER TABLE {table} ALTER COLUMN {name} DROP DEFAULT, {alter}, ALTER COLUMN {name} SET DEFAULT {default}"
        ),
        _ => format!("ALTER TABLE {table} {alter}"),
    }
}

/// The type with its length.
fn type_of(definition: &str) -> &str {
    [" NOT NULL", " IDENTITY", " GENERATED", " DEFAULT"]
        .iter()
        .fold(definition, |rest, end| rest.split_once(end).map_or(rest, |(name, _)| name))
}

pub(super) fn fits(expected: &str, found: &str) -> bool {
    difference(expected, found).is_none()
}

/// The type without its length. Text types that Diesel reads in the same way are one family.
fn family(definition: &str) -> String {
    let name = type_of(definition).to_owned();
    let name = match (name.find('('), name.find(')')) {
        (Some(open), Some(close)) if open < close => format!("{}{}", &name[..open], &name[close + 1..]),
        _ => name,
    };
    if name == "character varying" { "text".into() } else { name }
}

/// The maximum number of characters of a text.
fn length(definition: &str) -> u32 {
    definition
        .strip_prefix("character varying(")
        .and_then(|rest| rest.split_once(')'))
        .and_then(|(length, _)| length.parse().ok())
        .unwrap_or(u32::MAX)
}

fn is_not_null(definition: &str) -> bool {
    definition.contains(" NOT NULL")
}

#[cfg(test)]
mod tests {
    use super::{Difference, difference};

    #[test]
    fn types_lengths_and_nulls_are_told_apart() {
        let varchar = "character varying(12) NOT NULL";
        for (expected, found, differs) in [
            (varchar, varchar, None),
            (varchar, "text NOT NULL", None),
            (varchar, "character varying(20) NOT NULL DEFAULT 'x'::text", None),
            (varchar, "character varying(10) NOT NULL", Some(Difference::Narrow)),
            (varchar, "character varying(12)", Some(Difference::Nullable)),
            (varchar, "character(12) NOT NULL", Some(Difference::Type)),
            (varchar, "uuid NOT NULL", Some(Difference::Type)),
            ("text", varchar, Some(Difference::Narrow)),
            ("numeric(10,4)", "numeric", None),
            ("numeric(10,4)", "double precision", Some(Difference::Type)),
            ("timestamp with time zone", "timestamp(3) with time zone", None),
            ("timestamp with time zone", "timestamp without time zone", Some(Difference::Type)),
            ("bigint NOT NULL DEFAULT 1", "bigint NOT NULL DEFAULT 0", None),
            ("bigint NOT NULL IDENTITY", "integer NOT NULL", Some(Difference::Type)),
        ] {
            assert_eq!(difference(expected, found), differs, "{expected} and {found}");
        }
    }
}
