//! Each role of `docs/privileges.md` has the privileges that its methods need, and no others.

use api_keys_driver::{DeniedKeys, KeysDriver, Page, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use throwaway_postgres::Database;

use crate::every_method::{Input, MAINTENANCE, METHODS, Method};
use crate::support::{CallRow, KeyRow, TENANT, existing_service, key, migrated_apart, tenant};

const DOCUMENT: &str = include_str!("../../docs/privileges.md");

/// Whether a role must be able to call a method.
type IsFor = fn(&str) -> bool;

const ROLES: [(&str, IsFor); 5] = [
    ("api_keys_worker", |name| !is_of_the_facade(name) && !maintains(name)),
    ("api_keys_maintainer", |name| {
        let reads = ["fetch_key_events", "fetch_key_history_after", "fetch_key_usage", "fetch_tenant_usage"];
        maintains(name) || reads.iter().any(|reads| name.starts_with(reads))
    }),
    ("api_keys_gateway", |name| {
        let recognises = ["fetch_key_by_hash", "fetch_key_auth_by_id", "fetch_denied_keys_after"];
        recognises.contains(&name) || name.contains("record_key_uses")
    }),
    ("api_keys_customer_view", is_of_the_facade),
    ("api_keys_follower", |name| {
        let reads = ["fetch_key_history_after", "fetch_denied_keys_after"];
        name.starts_with("fetch_key_events") || reads.contains(&name)
    }),
];

fn maintains(name: &str) -> bool {
    MAINTENANCE.contains(&name) || name == "compact_key_events"
}

fn is_of_the_facade(name: &str) -> bool {
    name.contains("_api_key")
}

/// A migrated database with a key, a call, and the roles of the document under unique names.
fn with_roles() -> (Database, PgConnection, impl Fn(&str) -> String) {
    let (database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    CallRow::default().insert(&mut conn);
    let suffix: String =
        diesel::select(diesel::dsl::sql::<Text>("current_database()::text")).get_result(&mut conn).unwrap();
    let named = move |text: &str| {
        ["owner", "worker", "gateway", "customer_view", "follower", "maintainer"]
            .iter()
            .fold(text.to_owned(), |text, role| {
                text.replace(&format!("api_keys_{role}"), &format!("{role}_{suffix}"))
            })
    };
    for sql in statements() {
        conn.batch_execute(&named(sql)).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    (database, conn, named)
}

/// The statements of the document.
fn statements() -> impl Iterator<Item = &'static str> {
    let blocks = DOCUMENT.split("```sql\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.flat_map(|block| block.split_inclusive(";\n")).map(str::trim).filter(|sql| !sql.is_empty())
}

fn as_role(database: &Database, role: &str) -> PgConnection {
    PgConnection::establish(&database.url().replace("user=postgres", &format!("user={role}"))).unwrap()
}

/// Calls a method, and rolls back. Returns `false` if the server denies it.
fn may(conn: &mut PgConnection, method: &Method) -> bool {
    let mut may = None;
    conn.test_transaction(|conn| {
        let answer = (method.call)(conn, &Input::default());
        let why = answer.as_ref().err().and_then(std::error::Error::source).map(ToString::to_string);
        let denied = why.is_some_and(|why| why.starts_with("permission denied for "));
        assert!(denied || answer.is_ok(), "{}: {answer:?}", method.name);
        may = Some(!denied);
        Ok::<_, std::convert::Infallible>(())
    });
    may.unwrap()
}

#[test]
fn each_role_may_call_the_methods_that_it_is_for_and_no_other() {
    let (database, _conn, named) = with_roles();
    for (role, is_for) in ROLES {
        let mut conn = as_role(&database, &named(role));
        let mut besides = Vec::new();
        for method in METHODS {
            let expected = is_for(method.name);
            // A worker sees all that the facade shows.
            if role == "api_keys_worker" && !expected {
                continue;
            }
            let may = may(&mut conn, method);
            if may && !expected {
                besides.push(method.name);
            } else {
                assert_eq!(may, expected, "{role} and {}: see docs/privileges.md", method.name);
            }
        }
        // These return no row: numbers, a lock, and a position of the server.
        let shows_no_row = |name: &&str| {
            name.starts_with("count_") || ["lock_tenant", "fetch_key_events_head"].contains(name)
        };
        assert!(besides.iter().all(shows_no_row), "{role} may also call {besides:?}");
    }
}

#[test]
fn a_follower_may_keep_a_cache_of_the_denied_keys() {
    let (database, _conn, named) = with_roles();
    let mut conn = as_role(&database, &named("api_keys_follower"));
    let mut denied = DeniedKeys::seed(&mut conn).unwrap();
    denied.catch_up(&mut conn).unwrap();
    assert!(denied.is_empty());
}

#[test]
fn each_privilege_is_needed_by_a_method_of_its_role() {
    let (database, mut owner, named) = with_roles();
    for (role, is_for) in ROLES {
        let role_name = named(role);
        let mut conn = as_role(&database, &role_name);
        let grants = statements().filter(|sql| sql.starts_with("GRANT") && sql.contains(role));
        for (privileges, table) in grants.flat_map(single_privileges) {
            // PostgreSQL 18 answers NULL instead of denying.
            if (privileges.as_str(), table.as_str()) == ("SELECT", "usage_frontier") {
                continue;
            }
            owner.batch_execute(&format!("REVOKE {privileges} ON {table} FROM {role_name}")).unwrap();
            let methods = METHODS.iter().filter(|method| is_for(method.name));
            let is_needed = methods.into_iter().any(|method| !may(&mut conn, method));
            assert!(is_needed, "{role} has {privileges} on {table}, and no method needs it");
            owner.batch_execute(&format!("GRANT {privileges} ON {table} TO {role_name}")).unwrap();
        }
    }
}

/// A role that does everything: a worker and a maintainer in one.
#[test]
fn check_names_each_privilege_that_a_role_lacks() {
    let (database, mut owner, named) = with_roles();
    let role = named("api_keys_gateway");
    let grants = statements().filter(|sql| sql.starts_with("GRANT"));
    let grants = grants.filter(|sql| sql.contains("api_keys_worker") || sql.contains("api_keys_maintainer"));
    let privileges: Vec<_> = grants.flat_map(single_privileges).collect();
    let give = |owner: &mut PgConnection, (privileges, table): &(String, String)| {
        owner.batch_execute(&format!("GRANT {privileges} ON {table} TO {role}")).unwrap();
    };
    for privilege in &privileges {
        give(&mut owner, privilege);
    }
    let mut conn = as_role(&database, &role);
    let mut lacks = || {
        let found = check(&mut conn).unwrap().obstacles.into_iter().map(|obstacle| obstacle.name);
        found.filter(|name| !name.starts_with("CREATE on schema")).collect::<Vec<_>>()
    };
    assert_eq!(lacks(), [""; 0]);
    // The migration grants it to everybody who writes calls.
    owner.batch_execute("REVOKE SELECT ON usage_frontier FROM PUBLIC").unwrap();
    for privilege in &privileges {
        let (verb, table) = (privilege.0.split(' ').next().unwrap(), &privilege.1);
        // Of two privileges of the same kind, on the table and on its columns, one is enough.
        let same =
            privileges.iter().filter(|other| &other.1 == table && other.0.split(' ').next() == Some(verb));
        let same: Vec<_> = same.filter(|other| !other.0.contains('(') || *other == privilege).collect();
        for (privileges, table) in &same {
            owner.batch_execute(&format!("REVOKE {privileges} ON {table} FROM {role}")).unwrap();
        }
        let found = lacks();
        assert!(
            !found.is_empty()
                && found.iter().all(|name| name.starts_with(verb) && name.ends_with(&format!(" on {table}"))),
            "{privilege:?}: {found:?}"
        );
        for privilege in same {
            give(&mut owner, privilege);
        }
    }
}

/// Splits `SELECT (a, b), INSERT` into single privileges.
fn single_privileges(grant: &str) -> Vec<(String, String)> {
    let grant = grant.strip_prefix("GRANT ").unwrap();
    let (privileges, rest) = grant.split_once(" ON ").unwrap();
    let table = rest.split(' ').next().unwrap().to_owned();
    let Some((verb, columns)) = privileges.split_once('(') else {
        return privileges.split(", ").map(|verb| (verb.to_owned(), table.clone())).collect();
    };
    let columns = columns.trim_end_matches(')').split(',').map(str::trim);
    columns.map(|column| (format!("{verb}({column})"), table.clone())).collect()
}

#[test]
fn an_owner_without_superuser_rights_migrates_an_empty_database() {
    let (database, _conn, named) = with_roles();
    let owner = named("api_keys_owner");
    let mut superuser = database.connect().unwrap();
    superuser
        .batch_execute(&format!(
            "CREATE SCHEMA of_its_own; GRANT USAGE, CREATE ON SCHEMA of_its_own TO {owner}"
        ))
        .unwrap();
    let mut conn = as_role(&database, &owner);
    conn.batch_execute("SET search_path = of_its_own").unwrap();
    assert!(!migrate(&mut conn).unwrap().is_empty());
    assert_eq!(KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap(), 0);
}

#[test]
fn the_existing_service_writes_keys_without_a_right_on_their_events() {
    let Some((database, mut conn)) = existing_service() else { return };
    migrate(&mut conn).unwrap();
    KeyRow::default().insert(&mut conn);
    let service = format!("service_{}", std::process::id());
    conn.batch_execute(&format!(
        "CREATE ROLE {service} LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON api_keys, proxy_calls, tenants TO {service}"
    ))
    .unwrap();
    let mut as_service = as_role(&database, &service);
    as_service.batch_execute("UPDATE api_keys SET status = 'revoked'").unwrap();
    let events = KeysDriver::new(&mut as_service).fetch_key_events(&tenant(), &key("key"), Page::default());
    assert!(events.is_err(), "it has no right to read them");
    let events = KeysDriver::new(&mut conn).fetch_key_events(&TENANT.into(), &key("key"), Page::default());
    assert_eq!(events.unwrap().len(), 2);
    drop(as_service);
    conn.batch_execute(&format!("DROP OWNED BY {service}; DROP ROLE {service}")).unwrap();
}
