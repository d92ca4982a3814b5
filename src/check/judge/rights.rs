//! The rights of the current role: those that groups of methods need on the tables, and those that migrating needs.

use std::collections::BTreeMap;

use super::super::Effect;
use super::{Verdict, View};
use crate::steps::quoted;
use crate::steps::records::TABLE;

/// The privileges that a group of methods needs on a table.
struct Need {
    table: &'static str,
    privileges: &'static [&'static str],
    /// The columns that are read or updated. Empty if the privilege on any column is enough.
    columns: &'static [&'static str],
    methods: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        table: "api_keys",
        privileges: &["SELECT"],
        columns: &[
            "id",
            "tenant_id",
            "name",
            "key_prefix",
            "permissions_json",
            "allowed_workers_json",
            "rate_limit_rpm",
            "max_concurrent_runs",
            "status",
            "expires_at",
            "revoked_at",
            "revoked_reason",
            "last_used_at",
            "total_requests",
            "created_at",
            "frozen_at",
            "frozen_by",
            "freeze_reason",
            "is_synthetic",
            "is_frozen",
            "revision",
        ],
        methods: "methods that read keys",
    },
    Need { table: "api_keys", privileges: &["SELECT"], columns: &["key_hash"], methods: "fetch_key_by_hash" },
    Need { table: "api_keys", privileges: &["INSERT"], columns: &[], methods: "methods that insert keys" },
    Need {
        table: "api_keys",
        privileges: &["UPDATE"],
        columns: &["last_used_at", "total_requests"],
        methods: "record_key_uses",
    },
    Need {
        table: "api_keys",
        privileges: &["UPDATE"],
        columns: &[
            "name",
            "permissions_json",
            "allowed_workers_json",
            "rate_limit_rpm",
            "max_concurrent_runs",
            "status",
            "expires_at",
            "revoked_at",
            "revoked_reason",
            "frozen_at",
            "frozen_by",
            "freeze_reason",
            "is_frozen",
        ],
        methods: "methods that lock or change keys",
    },
    Need {
        table: "proxy_calls",
        privileges: &["SELECT"],
        columns: &["tenant_id", "api_key_id", "created_at", "cost_cents"],
        methods: "methods that read usage",
    },
    Need {
        table: "api_key_events",
        privileges: &["SELECT"],
        columns: &[],
        methods: "methods that read events",
    },
    Need { table: "api_keys", privileges: &["DELETE"], columns: &[], methods: "methods that delete keys" },
    Need { table: "proxy_calls", privileges: &["INSERT"], columns: &[], methods: "insert_calls" },
    Need {
        table: "proxy_calls",
        privileges: &["DELETE", "UPDATE"],
        columns: &[],
        methods: "delete_calls_before",
    },
    compacts("api_key_events", &["DELETE"]),
    compacts("api_key_events_compacted", &["SELECT", "UPDATE"]),
    reads_usage("usage_changes"),
    reads_usage("usage_key_buckets"),
    reads_usage("usage_progress"),
    reads_usage("usage_retention"),
    reads_usage("usage_tenant_buckets"),
    maintains("usage_changes", &["INSERT", "DELETE"]),
    maintains("usage_key_buckets", &["INSERT", "UPDATE"]),
    maintains("usage_progress", &["INSERT", "UPDATE", "DELETE"]),
    maintains("usage_retention", &["UPDATE"]),
    maintains("usage_tenant_buckets", &["INSERT", "UPDATE"]),
    maintains("usage_frontier", &["SELECT", "UPDATE"]),
];

const fn compacts(table: &'static str, privileges: &'static [&'static str]) -> Need {
    Need { table, privileges, columns: &[], methods: "compact_key_events" }
}

const fn reads_usage(table: &'static str) -> Need {
    Need { table, privileges: &["SELECT"], columns: &[], methods: "methods that read usage" }
}

const fn maintains(table: &'static str, privileges: &'static [&'static str]) -> Need {
    Need { table, privileges, columns: &[], methods: "methods that maintain usage" }
}

pub(super) fn judge(view: &View<'_>, verdict: &mut Verdict) {
    let role = quoted(&view.home.session.role);
    for need in NEEDS {
        let Some(table) = view.home.table(need.table) else { continue };
        let is_column = |column: &&&str| {
            view.home.objects.iter().any(|object| {
                object.kind == "column" && object.table == need.table && object.name == **column
            })
        };
        let has = |privilege: &&str| table.privileges.iter().any(|granted| granted == privilege);
        let mut missing: Vec<_> =
            need.privileges.iter().copied().filter(|privilege| !has(privilege)).collect();
        let may_use = |column: &&str| {
            need.privileges
                .iter()
                .all(|privilege| table.column_privileges.contains(&format!("{privilege} {column}")))
        };
        if missing.is_empty() && need.columns.iter().filter(is_column).all(may_use) {
            continue;
        }
        if missing.is_empty() {
            missing = need.privileges.to_vec();
        }
        let missing = missing.join(", ");
        let columns = match need.columns {
            few @ ([_] | [_, _]) => format!(" ({})", few.join(", ")),
            _ => String::new(),
        };
        verdict.add(
            Effect::BlocksMethods,
            format!("{missing}{columns} on {}", need.table),
            format!(
                "the role {} lacks this right, without which {} cannot work",
                view.home.session.role, need.methods
            ),
            format!("GRANT {missing}{columns} ON {} TO {role}", view.qualified(need.table)),
        );
    }
    foreign_owned(view, verdict);
    owners_without_usage(view, verdict);
    other_creators(view, verdict);
    if !view.pending.is_empty() {
        to_migrate(view, &role, verdict);
    }
}

/// The crate's triggers run with the rights of the owner of their functions. So no unrelated role may own such a
/// function, or a table that the triggers write to.
fn foreign_owned(view: &View<'_>, verdict: &mut Verdict) {
    for object in &view.home.foreign_owned {
        if object.name.ends_with(TABLE) {
            if !view.pending.is_empty() {
                verdict.add(
                    Effect::BlocksMigration,
                    format!("owner of {}", object.name),
                    format!(
                        "it belongs to {}, a role without the rights of the tables' owner, whose triggers would run with \
                         the rights of the role that migrates",
                        object.owner
                    ),
                    "Change its owner to the owner of api_keys, or rename it",
                );
            }
            continue;
        }
        verdict.add(
            if view.pending.is_empty() { Effect::BlocksMethods } else { Effect::BlocksMigration },
            format!("owner of {}", object.name),
            format!(
                "it belongs to {}, a role without the rights of the tables' owner, which could change what the \
                 triggers do and record",
                object.owner
            ),
            "Find out who created it, and drop it or change its owner to the owner of api_keys",
        );
    }
}

/// Without it each write of a key or a call would fail, because the triggers write to tables of the schema.
fn owners_without_usage(view: &View<'_>, verdict: &mut Verdict) {
    for owner in &view.home.session.owners_without_usage {
        verdict.add(
            if view.pending.is_empty() { Effect::BlocksMethods } else { Effect::BlocksMigration },
            format!("USAGE on schema {} of {owner}", view.home.schema),
            "the triggers run with the rights of the tables' owner, so writes fail if that role may not use the schema",
            format!("GRANT USAGE ON SCHEMA {} TO {}", quoted(&view.home.schema), quoted(owner)),
        );
    }
}

/// Statements of the drivers do not qualify their operators, so a session uses those of the tables' schema.
fn other_creators(view: &View<'_>, verdict: &mut Verdict) {
    for creator in &view.home.session.other_creators {
        verdict.add(
            Effect::Degrades,
            format!("CREATE on schema {} of {creator}", view.home.schema),
            format!(
                "{creator} may create operators and functions there, which the statements of other roles would \
                 call with their rights"
            ),
            format!("REVOKE CREATE ON SCHEMA {} FROM {creator}", quoted(&view.home.schema)),
        );
    }
}

const GIVEN_TO_THE_OWNER: &str = "new tables and functions are given to the owner of api_keys or proxy_calls: that role \
     must have CREATE on the schema, and the current role must be able to SET ROLE to it";

fn to_migrate(view: &View<'_>, role: &str, verdict: &mut Verdict) {
    if !view.home.session.may_create {
        verdict.add(
            Effect::BlocksMigration,
            format!("CREATE on schema {}", view.home.schema),
            format!("the role {} must create tables and indexes in the schema", view.home.session.role),
            format!(
                "GRANT CREATE ON SCHEMA {} TO {role}, or migrate as {}",
                quoted(&view.home.schema),
                view.home.session.schema_owner
            ),
        );
    }
    let creates_for_the_owner = view.facts.expected.iter().any(|expected| {
        matches!(expected.kind, "table" | "function") && view.is_pending(expected.created_by)
    });
    for owner in view.home.session.owners_without_create.iter().filter(|_| creates_for_the_owner) {
        verdict.add(
            Effect::BlocksMigration,
            format!("CREATE on schema {} of {owner}", view.home.schema),
            GIVEN_TO_THE_OWNER,
            format!("GRANT CREATE ON SCHEMA {} TO {}", quoted(&view.home.schema), quoted(owner)),
        );
    }
    let base =
        view.home.tables.iter().filter(|table| ["api_keys", "proxy_calls"].contains(&table.name.as_str()));
    let unsettable = base.filter(|table| table.is_owner && !table.may_set_role);
    let grants: BTreeMap<_, _> = unsettable.map(|table| (&table.owner, &table.grant_of_owner)).collect();
    for (owner, grant) in grants.into_iter().filter(|_| creates_for_the_owner) {
        verdict.add(
            Effect::BlocksMigration,
            format!("SET ROLE {owner}"),
            GIVEN_TO_THE_OWNER,
            format!("Migrate as {owner}, or {grant}"),
        );
    }
    to_record(view, role, verdict);
    for table in view.home.tables.iter().filter(|table| !table.is_owner) {
        verdict.add(
            Effect::BlocksMigration,
            format!("ownership of {}", table.name),
            format!("only the owner {} may change the table", table.owner),
            if table.may_set_role {
                format!("SET ROLE {}, whose rights the role does not inherit", quoted(&table.owner))
            } else {
                format!("Migrate as {}, or {}", table.owner, table.grant_of_owner)
            },
        );
    }
}

/// The table of applied migrations, which Diesel creates if it does not exist.
fn to_record(view: &View<'_>, role: &str, verdict: &mut Verdict) {
    let table = view.qualified(TABLE);
    let records = &view.home.records;
    if !records.are_diesels {
        verdict.add(
            Effect::BlocksMigration,
            format!("table {TABLE}"),
            "it is not Diesel's table of applied migrations, which has the column version varchar(50)",
            format!("Rename it: ALTER TABLE {table} RENAME TO another name"),
        );
    } else if records.are_hidden() || !records.are_writable {
        verdict.add(
            Effect::BlocksMigration,
            format!("SELECT, INSERT on {TABLE}"),
            format!("the role {} must read and record which migrations are applied", view.home.session.role),
            format!("GRANT SELECT, INSERT ON {table} TO {role}, or migrate as the owner of that table"),
        );
    }
}
