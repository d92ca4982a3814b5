//! What the current role may do: to the tables with the methods, and to the schema with the migrations.

use super::super::Effect;
use super::{Verdict, View};
use crate::steps::quoted;

/// What a group of methods does to a table.
struct Need {
    table: &'static str,
    privilege: &'static str,
    /// The columns that are read; empty for the other privileges.
    columns: &'static [&'static str],
    methods: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        table: "api_keys",
        privilege: "SELECT",
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
    Need { table: "api_keys", privilege: "SELECT", columns: &["key_hash"], methods: "fetch_key_by_hash" },
    Need { table: "api_keys", privilege: "INSERT", columns: &[], methods: "methods that insert keys" },
    Need {
        table: "api_keys",
        privilege: "UPDATE",
        columns: &[],
        methods: "methods that lock or change keys, and record_key_uses",
    },
    Need {
        table: "proxy_calls",
        privilege: "SELECT",
        columns: &["tenant_id", "api_key_id", "created_at", "cost_cents"],
        methods: "methods that read usage",
    },
    Need { table: "api_key_events", privilege: "SELECT", columns: &[], methods: "methods that read events" },
];

pub(super) fn judge(view: &View<'_>, verdict: &mut Verdict) {
    let role = quoted(&view.home.session.role);
    for need in NEEDS {
        let Some(table) = view.home.table(need.table) else { continue };
        let is_column = |column: &&&str| {
            view.home.objects.iter().any(|object| {
                object.kind == "column" && object.table == need.table && object.name == **column
            })
        };
        let has_privilege = table.privileges.iter().any(|privilege| privilege == need.privilege);
        let reads_all = need
            .columns
            .iter()
            .filter(is_column)
            .all(|column| table.readable.iter().any(|name| name == column));
        if has_privilege && reads_all {
            continue;
        }
        let columns = if need.columns.len() == 1 { format!(" ({})", need.columns[0]) } else { String::new() };
        verdict.add(
            Effect::BlocksMethods,
            format!("{}{columns} on {}", need.privilege, need.table),
            format!("the role {} lacks this right, and {} fail", view.home.session.role, need.methods),
            format!("GRANT {}{columns} ON {} TO {role}", need.privilege, view.qualified(need.table)),
        );
    }
    planted(view, verdict);
    if !view.pending.is_empty() {
        to_migrate(view, &role, verdict);
    }
}

/// The triggers run with the rights of their functions' owner, and write to tables with triggers of their own.
fn planted(view: &View<'_>, verdict: &mut Verdict) {
    for object in &view.home.planted {
        verdict.add(
            if view.pending.is_empty() { Effect::BlocksMethods } else { Effect::BlocksMigration },
            format!("owner of {}", object.name),
            format!(
                "it belongs to {}, which has not the rights of the owner of the tables: it can change what the \
                 triggers do and record",
                object.owner
            ),
            "Find out who made it, and drop it or give it to the owner of api_keys",
        );
    }
}

fn to_migrate(view: &View<'_>, role: &str, verdict: &mut Verdict) {
    if !view.home.session.may_create {
        verdict.add(
            Effect::BlocksMigration,
            format!("CREATE on schema {}", view.home.schema),
            format!("the role {} makes tables and indexes in the schema", view.home.session.role),
            format!(
                "GRANT CREATE ON SCHEMA {} TO {role}, or migrate as {}",
                quoted(&view.home.schema),
                view.home.session.schema_owner
            ),
        );
    }
    for table in view.home.tables.iter().filter(|table| !table.is_owner) {
        verdict.add(
            Effect::BlocksMigration,
            format!("ownership of {}", table.name),
            format!("only the owner {} may change the table", table.owner),
            format!("Migrate as {}, or GRANT {} TO {role}", table.owner, quoted(&table.owner)),
        );
    }
}
