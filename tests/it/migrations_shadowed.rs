//! `diesel migration run` leaves the search path to the session. No migration may use a type, an operator or a function
//! of another schema than `pg_catalog`.

use diesel::connection::SimpleConnection;
use diesel::migration::{MigrationConnection, MigrationSource};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_migrations::MigrationHarness;
use throwaway_postgres::Database;

use api_keys_driver::{MIGRATIONS, Migrator, check, migrate};

use crate::migrations::{dump, lines, names};
use crate::support::{empty_apart, existing_service_apart};

/// For each type, operator and function of `pg_catalog` that the migrations could mean, one of the same name and
/// signature in the schema `shadows`. A domain accepts no value, and a function raises an error.
const SHADOWS: &str = r"
    CREATE SCHEMA shadows;
    DO $$
    DECLARE
        one record;
        nth integer := 0;
    BEGIN
        FOR one IN SELECT typname, typtype FROM pg_type
            WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'p') AND typcategory <> 'A'
        LOOP
            BEGIN
                IF one.typtype = 'p' THEN
                    EXECUTE format('CREATE TYPE shadows.%I AS ENUM (''trapped'')', one.typname);
                ELSE
                    EXECUTE format('CREATE DOMAIN shadows.%I AS pg_catalog.%1$I CHECK (false)', one.typname);
                END IF;
            EXCEPTION WHEN wrong_object_type OR undefined_object THEN
            END;
        END LOOP;
        FOR one IN SELECT oid, oprname, oprleft::regtype, oprright::regtype, oprresult::regtype FROM pg_operator
            WHERE oprname IN ('=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '||', '~') AND oprleft <> 0
        LOOP
            EXECUTE format(
                'CREATE FUNCTION shadows.trap_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS
                     ''BEGIN RAISE EXCEPTION ''''trapped by %s''''; END'';
                 CREATE OPERATOR shadows.%5$s (LEFTARG = %2$s, RIGHTARG = %3$s, FUNCTION = shadows.trap_%1$s)',
                one.oid, one.oprleft, one.oprright, one.oprresult, one.oprname
            );
        END LOOP;
        FOR one IN SELECT proname, pg_get_function_identity_arguments(oid) AS arguments, prorettype::regtype AS answer
            FROM pg_proc
            WHERE pronamespace = 'pg_catalog'::regnamespace AND position(lower(proname) IN current_setting('the.migrations')) > 0
        LOOP
            BEGIN
                EXECUTE format(
                    'CREATE FUNCTION shadows.%I(%s) RETURNS %s LANGUAGE plpgsql AS
                         ''BEGIN RAISE EXCEPTION ''''trapped by %1$s''''; END''',
                    one.proname, one.arguments, one.answer
                );
            EXCEPTION WHEN feature_not_supported OR invalid_function_definition OR syntax_error OR duplicate_function THEN
            END;
        END LOOP;
    END
    $$";

fn sql_of(name: &str, way: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    std::fs::read_to_string(format!("{folder}/{name}/{way}")).unwrap()
}

/// The names of types that a line gives without a schema. SQL resolves some names, such as `varchar`, by its grammar.
fn unqualified_types<'l>(line: &'l str, types: &[String]) -> Vec<&'l str> {
    const BY_GRAMMAR: &[&str] =
        &["varchar", "numeric", "interval", "timestamp", "time", "bit", "char", "record"];
    let is_type = |word: &str| types.iter().any(|name| name == word) && !BY_GRAMMAR.contains(&word);
    let is_in_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let word_of = |text: &'l str| &text[..text.find(|c| !is_in_word(c)).unwrap_or(text.len())];
    let mut found: Vec<_> = line.split("::").skip(1).map(word_of).filter(|word| is_type(word)).collect();
    // A column or a variable, and its type.
    let mut words = line.split_whitespace().filter(|word| *word != "CONSTANT");
    if let (Some(name), Some(kind)) = (words.next(), words.next())
        && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    {
        found.extend(Some(word_of(kind)).filter(|word| is_type(word)));
    }
    found.extend(line.split("RETURNS ").skip(1).map(word_of).filter(|word| is_type(word)));
    found
}

/// Constructs that look up an operator by its name. The body of the one function may have one: it pins its path.
fn hidden_operators(line: &str) -> Vec<&'static str> {
    let is_pinned = line.contains("IS NOT DISTINCT FROM (NEW.tenant_id");
    let hidden = [
        "IS DISTINCT FROM",
        "IS NOT DISTINCT FROM",
        " BETWEEN ",
        "NULLIF",
        " LIKE ",
        " IN (",
        "CASE GRANTED",
    ];
    let line = line.to_uppercase();
    hidden.into_iter().filter(|construct| !is_pinned && line.contains(construct)).collect()
}

#[test]
fn every_migration_qualifies_its_types() {
    let (_database, mut conn) = empty_apart();
    let types = lines(
        &mut conn,
        "SELECT typname::text AS line FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace",
    );
    for name in names() {
        for way in ["up.sql", "down.sql"] {
            let sql = sql_of(&name, way);
            for line in sql.lines().filter(|line| !line.trim_start().starts_with("--")) {
                assert_eq!(unqualified_types(line, &types), [""; 0], "{name}: {line}");
                assert_eq!(hidden_operators(line), [""; 0], "{name}: {line}");
            }
        }
    }
    for line in [
        "    x text,",
        "    x CONSTANT text[] := 1;",
        "y = a::oid",
        "f() RETURNS trigger LANGUAGE x",
        "x name;",
    ] {
        assert_eq!(unqualified_types(line, &types).len(), 1, "{line}");
    }
    for line in ["    x pg_catalog.text,", "    x varchar(12),", "y = a::pg_catalog.oid", "SELECT oid FROM x"]
    {
        assert_eq!(unqualified_types(line, &types), [""; 0], "{line}");
    }
}

/// Puts the shadows before `pg_catalog` on the search path.
fn shadow(conn: &mut PgConnection) {
    let all: String = names().iter().map(|name| sql_of(name, "up.sql") + &sql_of(name, "down.sql")).collect();
    let setting = diesel::sql_query("SELECT set_config('the.migrations', lower($1), false)");
    setting.bind::<Text, _>(all).execute(conn).unwrap();
    conn.batch_execute(SHADOWS).unwrap();
    let shadows = "SELECT proname::text AS line FROM pg_proc WHERE pronamespace = 'shadows'::regnamespace";
    let shadows = lines(conn, shadows);
    for name in ["format", "now", "max", "to_regclass", "pg_has_role"] {
        assert!(shadows.iter().any(|shadow| shadow == name), "{name}");
    }
    conn.batch_execute(HOSTILE_PATH).unwrap();
}

const HOSTILE_PATH: &str = "SET search_path = public, shadows, pg_catalog";

fn worlds() -> impl Iterator<Item = (Database, PgConnection)> {
    let service = existing_service_apart().map(|(database, mut conn)| {
        // Readers of calls become readers of the usage.
        conn.batch_execute("GRANT SELECT ON proxy_calls TO pg_monitor, PUBLIC").unwrap();
        (database, conn)
    });
    [Some(empty_apart()), service].into_iter().flatten()
}

#[test]
fn no_type_operator_or_function_of_a_neighbour_is_meant_by_a_migration() {
    for ((_plain, mut plain), (_shadowed, mut conn)) in worlds().zip(worlds()) {
        plain.run_pending_migrations(MIGRATIONS).unwrap();
        shadow(&mut conn);
        conn.setup().unwrap();
        for migration in MigrationSource::<Pg>::migrations(&MIGRATIONS).unwrap() {
            conn.run_migration(&migration).unwrap_or_else(|error| panic!("{}: {error}", migration.name()));
        }
        conn.batch_execute("SET search_path = public").unwrap();
        assert_eq!(dump(&mut conn), dump(&mut plain));
        conn.batch_execute(HOSTILE_PATH).unwrap();
        // Not by `revert_migration`: Diesel's own statement has an operator that is not qualified.
        for name in names().iter().rev() {
            conn.batch_execute(&sql_of(name, "down.sql")).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn migrate_and_check_mean_no_neighbour_either() {
    for (_database, mut conn) in worlds() {
        shadow(&mut conn);
        assert_eq!(migrate(&mut conn).unwrap(), names());
        let report = check(&mut conn).unwrap();
        assert!(report.is_clean(), "{report}");
        Migrator::new().revert(&mut conn).unwrap();
    }
}
