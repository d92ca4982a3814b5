//! The session, the server, and everything else that affects the tables.

use super::super::Effect;
use super::super::object::is_named;
use super::{Verdict, View};
use crate::steps::{is_english, quoted};

/// The encodings in which every character can be converted to UTF-8. The others may store bytes that cannot.
const CONVERTIBLE: &[&str] = &[
    "UTF8",
    "LATIN1",
    "LATIN2",
    "LATIN4",
    "LATIN5",
    "LATIN6",
    "LATIN7",
    "LATIN8",
    "LATIN9",
    "LATIN10",
    "ISO_8859_5",
    "WIN1256",
    "WIN866",
    "KOI8R",
    "KOI8U",
];

pub(super) fn judge(view: &View<'_>, verdict: &mut Verdict) {
    place(view, verdict);
    session(view, verdict);
    for table in &view.home.tables {
        if table.has_hidden_rows {
            let (effect, why) = if view.pending.is_empty() {
                (Effect::Degrades, "lists, counts and followers are incomplete")
            } else {
                (Effect::BlocksMigration, "the migration could miss rows that a step relies on")
            };
            verdict.add(
                effect,
                format!("row security on {}", table.name),
                format!(
                    "the role {} sees only the rows that the policies of row-level security let through: {why}",
                    view.home.session.role
                ),
                format!(
                    "ALTER ROLE {} BYPASSRLS, or nothing if the policies are intended",
                    quoted(&view.home.session.role)
                ),
            );
        }
        if let Some(child) = table.children.first() {
            verdict.add(
                Effect::BlocksMigration,
                format!("children of {}", table.name),
                format!(
                    "{} inherit from it, and have neither its triggers nor its indexes: changes of their rows are not \
                     recorded",
                    table.children.join(", ")
                ),
                format!(
                    "ALTER TABLE {child} NO INHERIT {}, or partition the table: see docs/partitioning.md",
                    view.qualified(&table.name)
                ),
            );
        }
        if table.name == "api_keys" && table.unique_ids.is_empty() {
            verdict.add(
                Effect::BlocksMethods,
                "primary key of api_keys",
                "no unique index makes the ids unique at once, so two keys may have the same id, and a lookup by id \
                 may read the whole table",
                format!(
                    "Drop the constraint if it is deferrable, then ALTER TABLE {} ADD PRIMARY KEY (id)",
                    view.qualified(&table.name)
                ),
            );
        }
        if let Some(rule) = table.rules.first() {
            verdict.add(
                Effect::BlocksMethods,
                format!("rules on {}", table.name),
                format!(
                    "{} rewrite changes of it, so methods may change other rows than they report, and PostgreSQL refuses \
                     some of their statements",
                    table.rules.join(", ")
                ),
                format!("DROP RULE {} ON {}, or use a trigger instead", quoted(rule), view.qualified(&table.name)),
            );
        }
        if !table.without_identity.is_empty() {
            let alter = |table: &String| format!("ALTER TABLE {table} REPLICA IDENTITY FULL");
            verdict.add(
                Effect::BlocksMethods,
                format!("replica identity of {}", table.name),
                format!(
                    "the publication {} publishes its updates or deletions, and PostgreSQL refuses those of a published \
                     table without a replica identity: {}",
                    table.publications.join(", "),
                    table.without_identity.join(", ")
                ),
                format!(
                    "{}, or give it a primary key",
                    table.without_identity.iter().map(alter).collect::<Vec<_>>().join("; ")
                ),
            );
        }
        let gains_columns = view.facts.expected.iter().any(|expected| {
            expected.kind == "column"
                && expected.table == table.name
                && view.is_pending(expected.created_by)
                && !view.home.objects.iter().any(|object| is_named(expected, object))
        });
        if gains_columns && !table.publications.is_empty() {
            verdict.add(
                Effect::Degrades,
                format!("publication of {}", table.name),
                format!(
                    "the table gains columns, and subscribers of {} stop until they have them too",
                    table.publications.join(", ")
                ),
                "Add the columns on the subscribers first",
            );
        }
    }
    neighbours(view, verdict);
}

fn place(view: &View<'_>, verdict: &mut Verdict) {
    for found in view.facts.found.iter().filter(|found| found.schema != view.home.schema) {
        verdict.add(
            Effect::BlocksMigration,
            format!("search_path and {}", found.name),
            format!(
                "api_keys is in {}, and the session finds {} in {}",
                view.home.schema, found.name, found.schema
            ),
            format!(
                "Put all tables in one schema, or that schema first: ALTER ROLE {} SET search_path = {}",
                quoted(&view.home.session.role),
                quoted(&view.home.schema)
            ),
        );
    }
}

fn session(view: &View<'_>, verdict: &mut Verdict) {
    let session = &view.home.session;
    let writes = if view.pending.is_empty() { Effect::BlocksMethods } else { Effect::BlocksMigration };
    if session.is_standby {
        verdict.add(
            writes,
            "server",
            "it is a standby, which accepts neither writes nor row locks",
            "Connect to the primary",
        );
    } else if session.is_read_only {
        verdict.add(
            writes,
            "default_transaction_read_only",
            "transactions of this session are read-only, so writes and row locks fail",
            "SET default_transaction_read_only = off",
        );
    }
    if !is_english(&session.messages) {
        verdict.add(
            Effect::Degrades,
            "lc_messages",
            format!(
                "some errors are recognized by their English messages, and this server's are in {}",
                session.messages
            ),
            format!("ALTER DATABASE {} SET lc_messages = 'C'", quoted(&session.database)),
        );
    }
    if !CONVERTIBLE.contains(&session.encoding.as_str()) {
        verdict.add(
            Effect::Degrades,
            "encoding",
            format!(
                "{} stores bytes that have no form in UTF-8, and a row with them cannot be read",
                session.encoding
            ),
            "Move to a database in UTF8",
        );
    }
    if session.replication_role != "origin" {
        verdict.add(
            Effect::BlocksMethods,
            "session_replication_role",
            format!(
                "it is {}, so that triggers do not fire and changes are not recorded",
                session.replication_role
            ),
            "SET session_replication_role = origin",
        );
    }
}

fn neighbours(view: &View<'_>, verdict: &mut Verdict) {
    for neighbour in &view.home.neighbours {
        let name = format!("{} {}", neighbour.kind, neighbour.name);
        match neighbour.kind.as_str() {
            "extension" => verdict.add(
                Effect::Degrades,
                name,
                "it changes how the server stores and treats tables",
                if neighbour.name == "citus" { "See docs/sharding.md" } else { "Do not convert the crate's tables with it" },
            ),
            "event trigger" if !view.pending.is_empty() => verdict.add(
                Effect::Degrades,
                name,
                "it may refuse or change what a migration does",
                format!("{} during the migration, or make sure that it allows the migration's statements", neighbour.action),
            ),
            "event trigger" => {}
            _ => verdict.add(
                Effect::Degrades,
                name,
                "it has been open for more than 10 seconds: index builds wait for it, followers of events lag behind, and \
                 vacuum keeps dead rows",
                format!("End it there, or {}", neighbour.action),
            ),
        }
    }
}
