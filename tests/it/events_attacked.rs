//! Other roles try to make the triggers run their code, write to another table, or miss a change.

use api_keys_driver::{KeysDriver, Page, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::migrations::lines;
use crate::support::{KeyRow, key, migrated_apart, tenant};

fn kinds(conn: &mut PgConnection, id: &str) -> Vec<String> {
    let events = KeysDriver::new(conn).fetch_key_events(&tenant(), &key(id), Page::default()).unwrap();
    events.into_iter().map(|event| event.kind.into()).collect()
}

/// Creates a role that owns the schema `trap` and may write keys. Each server and database has its own role.
fn with_planter() -> (Database, PgConnection, String) {
    let (database, mut conn) = migrated_apart();
    let role = lines(&mut conn, "SELECT 'planter_of_' || current_database() AS line").remove(0);
    conn.batch_execute(&format!(
        "CREATE ROLE {role};
         GRANT CREATE ON SCHEMA public TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON api_keys TO {role};
         CREATE SCHEMA trap AUTHORIZATION {role};
         CREATE TABLE trap.caught (who text, how text);
         GRANT INSERT, SELECT ON trap.caught TO PUBLIC;
         GRANT USAGE ON SCHEMA trap TO PUBLIC"
    ))
    .unwrap();
    (database, conn, role)
}

/// Operators and functions that report who runs them, with names and types that a function body could refer to.
fn traps(schema: &str) -> String {
    let types = ["varchar", "text", "bigint", "integer", "boolean", "name", "record", "timestamptz", "oid"];
    let mut traps = Vec::new();
    for (index, kind) in types.iter().enumerate() {
        for (operator, symbol) in ["=", "<>", "<", ">", "*=", "*<>", "||", "+"].iter().enumerate() {
            let returns = match *symbol {
                "||" if *kind != "record" => "text",
                "+" if *kind != "record" => kind,
                _ => "boolean",
            };
            let function = format!("{schema}.trap_{index}_{operator}");
            traps.push(trap(&format!("{function}({kind}, {kind})"), returns));
            traps.push(format!(
                "CREATE OPERATOR {schema}.{symbol} (FUNCTION = {function}, LEFTARG = {kind}, RIGHTARG = {kind});"
            ));
        }
    }
    let functions = [
        ("now()", "timestamptz"),
        ("format(text, text)", "text"),
        ("format(text, name)", "text"),
        ("format(text, name, name)", "text"),
        ("max(bigint)", "bigint"),
        ("cardinality(text[])", "integer"),
        ("array_append(text[], text)", "text[]"),
        ("record_image_ne(record, record)", "boolean"),
        ("record_image_eq(record, record)", "boolean"),
        ("row_to_json(record)", "json"),
        ("current_setting(text)", "text"),
        ("pg_notify(text, text)", "void"),
        ("pg_current_xact_id()", "xid8"),
    ];
    traps.extend(functions.map(|(signature, returns)| trap(&format!("{schema}.{signature}"), returns)));
    traps.concat()
}

fn trap(signature: &str, returns: &str) -> String {
    let answer = match returns {
        "void" => "",
        "boolean" => "RETURN false;",
        _ => "RETURN NULL;",
    };
    format!(
        "CREATE FUNCTION {signature} RETURNS {returns} LANGUAGE plpgsql AS
             $trap$BEGIN INSERT INTO trap.caught VALUES (current_user, '{signature}'); {answer} END$trap$;"
    )
}

/// Statements that fire every trigger, and contain no operator or function themselves.
const EVERY_CHANGE: &str = "
    INSERT INTO public.api_keys (id, tenant_id, name, key_prefix, key_hash, created_at)
        VALUES ('key', '11111111-1111-1111-1111-111111111111', 'a', 'sk', 'hash', '2026-01-01Z');
    UPDATE public.api_keys SET last_used_at = '2026-01-02Z', total_requests = 1;
    UPDATE public.api_keys SET name = 'b';
    UPDATE public.api_keys SET is_frozen = true, frozen_at = '2026-01-03Z', name = 'c', last_used_at = '2026-01-03Z';
    UPDATE public.api_keys SET is_frozen = false, expires_at = '2026-01-04Z';
    UPDATE public.api_keys SET status = 'revoked', revoked_at = '2026-01-05Z';
    UPDATE public.api_keys SET tenant_id = '22222222-2222-2222-2222-222222222222';
    UPDATE public.api_keys SET tenant_id = '11111111-1111-1111-1111-111111111111';
    DELETE FROM public.api_keys;
    INSERT INTO public.api_keys (id, tenant_id, name, key_prefix, key_hash, created_at)
        VALUES ('key', '11111111-1111-1111-1111-111111111111', 'a', 'sk', 'hash', '2026-01-01Z');
    TRUNCATE public.api_keys;";

const THEIR_EVENTS: [&str; 11] = [
    "inserted",
    "changed",
    "frozen",
    "changed",
    "unfrozen",
    "expiry_set",
    "revoked",
    "deleted",
    "inserted",
    "deleted",
    "inserted",
];

#[test]
fn triggers_run_no_foreign_operator_or_function_whatever_the_search_path() {
    for (trap, path) in [
        ("public", "public"),
        ("public", "public, pg_catalog"),
        ("trap", "trap, pg_catalog"),
        ("trap", "trap, public, pg_temp"),
    ] {
        for writer_is_the_planter in [true, false] {
            let (_database, mut conn, role) = with_planter();
            conn.batch_execute("ALTER TABLE api_key_events ENABLE TRIGGER api_key_events_notify").unwrap();
            conn.batch_execute(&format!("SET ROLE {role}; {}; RESET ROLE", traps(trap))).unwrap();
            let writer = if writer_is_the_planter { format!("SET ROLE {role};") } else { String::new() };
            conn.batch_execute(&format!("{writer} SET search_path = {path}; {EVERY_CHANGE} RESET ROLE"))
                .unwrap();
            conn.batch_execute("SET search_path = public").unwrap();
            let caught = lines(&mut conn, "SELECT pg_catalog.concat(who, how) AS line FROM trap.caught");
            assert!(caught.is_empty(), "{trap} on {path}: {caught:?}");

            let told = "SELECT kind AS line FROM api_key_events AS e
                        WHERE tenant_id OPERATOR(pg_catalog.=) '11111111-1111-1111-1111-111111111111'::text
                        ORDER BY revision USING OPERATOR(pg_catalog.<), id USING OPERATOR(pg_catalog.<)";
            let told = lines(&mut conn, told);
            assert_eq!(told[..THEIR_EVENTS.len()], THEIR_EVENTS, "{trap} on {path}");
            assert_eq!(told[THEIR_EVENTS.len()..], ["deleted"], "{trap} on {path}");
        }
    }
}

#[test]
fn the_traps_catch_a_function_that_sets_no_search_path() {
    let (_database, mut conn, role) = with_planter();
    conn.batch_execute(&format!(
        "CREATE FUNCTION naive() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
             'BEGIN IF OLD.status = NEW.status THEN END IF; RETURN NEW; END';
         CREATE TRIGGER naive BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION naive();
         SET ROLE {role}; {}; SET search_path = public; {EVERY_CHANGE} RESET ROLE",
        traps("public")
    ))
    .unwrap();
    let caught = lines(&mut conn, "SELECT pg_catalog.concat(who, how) AS line FROM trap.caught");
    assert!(!caught.is_empty());
}

#[test]
fn only_the_owner_can_attach_the_functions_to_a_table() {
    let (_database, mut conn, role) = with_planter();
    conn.batch_execute(&format!(
        "GRANT SELECT ON api_key_events TO {role};
         SET ROLE {role};
         CREATE TABLE trap.api_keys (LIKE public.api_keys INCLUDING DEFAULTS);
         CREATE TABLE trap.api_key_events (LIKE public.api_key_events)"
    ))
    .unwrap();
    let functions = [
        "api_keys_compare",
        "api_keys_number",
        "api_keys_tell",
        "api_keys_tell_truncated",
        "api_key_events_notify",
    ];
    for function in functions {
        let sql =
            format!("CREATE TRIGGER t AFTER INSERT ON trap.api_keys EXECUTE FUNCTION public.{function}()");
        let error = conn.batch_execute(&sql).unwrap_err();
        assert_eq!(error.to_string(), format!("permission denied for function public.{function}"));
    }
    // Even if the owner attached a function for them, rows of other roles' tables would fire other roles' triggers.
    conn.batch_execute(
        "RESET ROLE;
         CREATE TRIGGER t AFTER INSERT ON trap.api_keys FOR EACH ROW EXECUTE FUNCTION public.api_keys_tell();
         INSERT INTO trap.api_keys (id, tenant_id, name, key_prefix, key_hash, created_at)
             VALUES ('key', 'tenant', 'a', 'sk', 'hash', now())",
    )
    .unwrap();
    assert!(lines(&mut conn, "SELECT kind AS line FROM trap.api_key_events").is_empty());
}

#[test]
fn an_events_table_of_an_unrelated_role_is_not_used() {
    let database = throwaway_postgres::empty().unwrap();
    let mut conn = database.connect().unwrap();
    conn.batch_execute(
        "GRANT CREATE ON SCHEMA public TO pg_signal_backend;
         SET ROLE pg_signal_backend;
         CREATE TABLE public.api_key_events (transaction_id bigint);
         COMMENT ON TABLE public.api_key_events IS 'Created by api_keys_driver.';
         RESET ROLE",
    )
    .unwrap();
    // A superuser may act as any role, so another role runs the check.
    let role = lines(&mut conn, "SELECT 'migrator_of_' || current_database() AS line").remove(0);
    conn.batch_execute(&format!(
        "CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role};
         DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {role}', current_database()); END $$;
         SET ROLE {role}"
    ))
    .unwrap();
    migrate(&mut conn).unwrap_err();
    let functions = "SELECT proname::text AS line FROM pg_proc WHERE proname = 'api_keys_tell'";
    assert!(lines(&mut conn, functions).is_empty(), "nothing writes to it");
    conn.batch_execute(&format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
}

#[test]
fn a_writer_needs_no_right_on_the_events_and_cannot_redirect_them() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    // A role that exists on every server, and that has no privileges on tables.
    conn.batch_execute(
        "GRANT SELECT, UPDATE ON api_keys TO pg_signal_backend;
         SET ROLE pg_signal_backend;
         CREATE TEMP TABLE api_key_events AS SELECT 1 AS decoy;
         CREATE TEMP TABLE api_key_events_compacted AS SELECT 1 AS decoy;
         SET search_path = pg_catalog;
         UPDATE public.api_keys SET is_frozen = true;
         RESET ROLE; RESET search_path; DROP TABLE pg_temp.api_key_events",
    )
    .unwrap();
    assert_eq!(kinds(&mut conn, "key"), ["inserted", "frozen"]);
}

/// The code of a function body: with string literals, which may contain SQL, and without quoted names and comments.
fn code_of(body: &str) -> String {
    let body: String =
        body.lines().map(|line| line.split("--").next().unwrap_or_default().to_owned() + " ").collect();
    body.split('\'')
        .enumerate()
        .map(|(index, part)| {
            let is_code = index % 2 == 0
                || ["SELECT", "INSERT", "UPDATE", "DELETE"].iter().any(|word| part.contains(word));
            if is_code { part.to_owned() } else { " _ ".to_owned() }
        })
        .collect()
}

/// The unqualified operators, functions and types in a function body.
fn unqualified(body: &str) -> Vec<String> {
    const WORDS: &[&str] = &[
        "all",
        "and",
        "any",
        "array",
        "as",
        "by",
        "case",
        "coalesce",
        "conflict",
        "else",
        "elsif",
        "end",
        "execute",
        "exists",
        "from",
        "greatest",
        "if",
        "in",
        "into",
        "join",
        "least",
        "loop",
        "not",
        "on",
        "operator",
        "or",
        "perform",
        "returning",
        "row",
        "select",
        "set",
        "then",
        "using",
        "values",
        "when",
        "where",
        "api_key_events",
        "sides",
        "usage_changes",
        "was",
        "will",
        "told",
        "lateral",
        "update",
        "rows",
    ];
    let code = code_of(body);
    let symbols: Vec<char> = code.chars().collect();
    let is_operator = |c: char| "+-*/<>=~!@#%^&|`?".contains(c);
    let mut found = Vec::new();
    let mut index = 0;
    while index < symbols.len() {
        let start = index;
        if is_operator(symbols[index]) {
            while index < symbols.len() && is_operator(symbols[index]) {
                index += 1;
            }
            let before: String = symbols[..start].iter().collect();
            let operator: String = symbols[start..index].iter().collect();
            let is_assignment = operator == "=" && before.ends_with(':');
            let is_star = operator == "*" && (before.trim_end().ends_with('(') || before.ends_with('.'));
            let is_format = operator == "%";
            // The sign of a number.
            let is_sign = operator == "-"
                && before.trim_end().ends_with([',', '('])
                && symbols.get(index).is_some_and(char::is_ascii_digit);
            // The target of `UPDATE .. SET target = value`.
            let is_target = operator == "="
                && before.trim_end().rsplit(' ').nth(1).is_some_and(|word| word.eq_ignore_ascii_case("set"));
            if !before.ends_with("OPERATOR(pg_catalog.")
                && !is_assignment
                && !is_star
                && !is_format
                && !is_target
                && !is_sign
            {
                found.push(format!("{operator} after {:?}", &before[before.len().saturating_sub(30)..]));
            }
        } else if symbols[index].is_alphabetic() || symbols[index] == '_' {
            while index < symbols.len() && (symbols[index].is_alphanumeric() || symbols[index] == '_') {
                index += 1;
            }
            let word: String = symbols[start..index].iter().collect();
            let before: String = symbols[..start].iter().collect();
            let is_called = symbols[index..].iter().find(|c| !c.is_whitespace()) == Some(&'(');
            let is_cast = before.ends_with("::") && word != "pg_catalog";
            if (is_called && !before.ends_with('.') && !WORDS.contains(&word.to_lowercase().as_str()))
                || is_cast
            {
                found.push(word);
            }
        } else {
            index += 1;
        }
    }
    // Constructs that look up an operator by its name and cannot be qualified.
    for hidden in ["IS DISTINCT FROM", "IS NOT DISTINCT", "BETWEEN", "NULLIF", " LIKE ", " IN ("] {
        if code.to_uppercase().contains(hidden) {
            found.push(hidden.into());
        }
    }
    found
}

#[test]
fn every_function_sets_search_path_and_qualifies_every_name() {
    let (_database, mut conn) = migrated_apart();
    let functions = "FROM pg_proc WHERE pronamespace = 'public'::regnamespace";
    let names = lines(&mut conn, &format!("SELECT proname::text AS line {functions} ORDER BY 1"));
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let of = format!("{functions} AND proname = '{name}'");
        let settings = format!("SELECT coalesce(array_to_string(proconfig, ';'), '') AS line {of}");
        let settings = lines(&mut conn, &settings).remove(0);
        assert!(settings.starts_with("search_path=pg_catalog, pg_temp"), "{name}: {settings}");
        let body = lines(&mut conn, &format!("SELECT prosrc AS line {of}")).remove(0);
        let mut found = unqualified(&body);
        // The part of the body that runs before `search_path` is set to the schema of the tables.
        found.retain(|found| !(name == "proxy_calls_tell_usage" && found == "IS NOT DISTINCT"));
        assert_eq!(found, [""; 0], "{name}");
        let public = lines(&mut conn, &format!("SELECT coalesce(proacl::text, 'everybody') AS line {of}"));
        assert!(
            !public[0].contains("{=X") && !public[0].contains(",=X") && public[0] != "everybody",
            "{name}: {public:?}"
        );
    }
}

#[test]
fn the_check_of_names_finds_what_is_not_qualified() {
    for (body, what) in [
        ("a = b", "="),
        ("a OPERATOR(pg_catalog.=) b AND c <> d", "<>"),
        ("pg_catalog.max(x) + now()", "now"),
        ("x::text", "text"),
        ("a IS DISTINCT FROM b", "IS DISTINCT FROM"),
        ("EXECUTE 'SELECT a || b'", "||"),
    ] {
        let found = unqualified(body);
        assert!(found.iter().any(|found| found.starts_with(what)), "{body}: {found:?}");
    }
    assert!(unqualified("x := pg_catalog.max(y::pg_catalog.text) OPERATOR(pg_catalog.+) 1;").is_empty());
}
