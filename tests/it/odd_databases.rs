//! Names that need quotes, and tables as a service may have changed them.

use api_keys_driver::{Error, Migrator, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection};

use crate::every_method::{Input, METHODS, Method, comparable};
use crate::migrations::{lines, names};
use crate::partitioned_calls::differs_from_call_to_call;
use crate::support::{CallRow, KeyRow, at, decimal, empty_apart, existing_service_apart};

#[test]
fn a_schema_of_any_name_is_migrated_and_reverted() {
    let long = "s".repeat(63);
    for schema in ["select", "The \"Service\"", "ünï.çødé", "a'b\\c%I %s $1", "home", &long] {
        let (_database, mut conn) = empty_apart();
        let quoted = format!("\"{}\"", schema.replace('"', "\"\""));
        conn.batch_execute(&format!("CREATE SCHEMA {quoted}; SET search_path = {quoted}")).unwrap();
        let migrated = migrate(&mut conn).unwrap_or_else(|error| panic!("{schema}: {error:?}"));
        assert_eq!(migrated, names(), "{schema}");
        let report = check(&mut conn).unwrap();
        assert!(report.is_clean(), "{schema}: {report}");
        KeyRow::default().insert(&mut conn);
        CallRow::default().insert(&mut conn);
        conn.batch_execute("DELETE FROM api_keys; DELETE FROM proxy_calls").unwrap();
        Migrator::new().revert(&mut conn).unwrap_or_else(|error| panic!("{schema}: {error:?}"));
    }
}

#[test]
fn changes_that_a_service_made_to_its_tables_do_not_stop_a_migration() {
    for sql in [
        "ALTER TABLE api_keys ADD COLUMN gone integer; ALTER TABLE api_keys DROP COLUMN gone",
        "ALTER TABLE proxy_calls ADD FOREIGN KEY (api_key_id) REFERENCES api_keys (id) NOT VALID",
        "ALTER TABLE proxy_calls ADD FOREIGN KEY (api_key_id) REFERENCES api_keys (id) DEFERRABLE INITIALLY DEFERRED",
        "ALTER TABLE api_keys ALTER COLUMN name TYPE text, ALTER COLUMN tenant_id TYPE text",
        "CREATE STATISTICS s ON tenant_id, key_prefix FROM api_keys",
        "CREATE INDEX \"A B\" ON api_keys (key_prefix, name)",
        "ALTER TABLE api_keys ADD CONSTRAINT c CHECK (length(key_prefix) < 20)",
        // The predicate of an index on it is shown without a cast.
        "ALTER TABLE api_keys ALTER COLUMN status TYPE text",
        "CREATE DOMAIN state AS varchar(50); CREATE DOMAIN known_state AS state CHECK (value <> '');
         ALTER TABLE api_keys ALTER COLUMN status TYPE known_state;
         CREATE DOMAIN moment AS timestamptz NOT NULL; ALTER TABLE proxy_calls ALTER COLUMN created_at TYPE moment;
         CREATE DOMAIN cents AS numeric(10,4); ALTER TABLE proxy_calls ALTER COLUMN cost_cents TYPE cents",
        "CREATE TABLE base (created_at timestamptz); ALTER TABLE api_keys INHERIT base",
        "CREATE TABLE audit (old proxy_calls); CREATE FUNCTION newest() RETURNS SETOF api_keys LANGUAGE sql
             BEGIN ATOMIC SELECT * FROM api_keys LIMIT 1; END; DROP FUNCTION newest()",
        "CREATE FUNCTION api_keys_tell(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE TABLE kept (prefix varchar(10) PRIMARY KEY);
         ALTER TABLE api_keys ADD FOREIGN KEY (key_prefix) REFERENCES kept NOT VALID, ADD UNIQUE (key_prefix)",
        "ALTER TABLE api_keys RENAME CONSTRAINT api_keys_pkey TO pk_api_keys",
        "ALTER TABLE api_keys CLUSTER ON api_keys_pkey, SET (fillfactor = 50), DISABLE TRIGGER ALL",
        "ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM PUBLIC;
         ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC",
    ] {
        let Some((_database, mut conn)) = existing_service_apart() else { return };
        conn.batch_execute(sql).unwrap();
        migrate(&mut conn).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let report = check(&mut conn).unwrap();
        assert!(report.is_clean(), "{sql}: {report}");
    }
}

/// Settings that a database may have for the programs that were there before.
const SETTINGS: &[&str] = &[
    "standard_conforming_strings = off",
    "escape_string_warning = off",
    "quote_all_identifiers = on",
    "check_function_bodies = off",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on",
    "\"DateStyle\" = 'SQL, DMY'",
    "\"IntervalStyle\" = 'sql_standard'",
    "\"TimeZone\" = 'Pacific/Kiritimati'",
    "client_encoding = 'LATIN1'",
    "extra_float_digits = -15",
    "bytea_output = 'escape'",
    "transform_null_equals = on",
    "array_nulls = off",
    "row_security = off",
    "track_activities = off",
    "enable_indexscan = off",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '5s'",
    "idle_session_timeout = '5s'",
    "plpgsql.extra_errors = 'all'",
    "plpgsql.variable_conflict = 'use_column'",
];

#[test]
fn a_database_is_migrated_and_used_with_settings_of_other_programs() {
    let (_plain, mut plain) = empty_apart();
    migrate(&mut plain).unwrap();
    let expected = answers(&mut plain);
    let Some((database, mut conn)) = existing_service_apart() else { return };
    let name = lines(&mut conn, "SELECT current_database()::text AS line").remove(0);
    // An index with a storage parameter, which a pattern with backslashes removes from its definition.
    conn.batch_execute(
        "CREATE UNIQUE INDEX uq_api_keys_key_hash ON api_keys USING btree (key_hash) WITH (fillfactor = 90)",
    )
    .unwrap();
    for setting in SETTINGS {
        conn.batch_execute(&format!("ALTER DATABASE {name} SET {setting}")).unwrap();
    }
    let mut conn = database.connect().unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), names());
    let report = check(&mut conn).unwrap();
    assert!(report.is_clean(), "{report}");
    let found = answers(&mut conn);
    for ((method, found), expected) in METHODS.iter().zip(found).zip(expected) {
        assert_eq!(found, expected, "{}", method.name);
    }
    Migrator::new().revert(&mut conn).unwrap();
}

/// The answer of each method. Those that contain the current time or a transaction id are left empty.
fn answers(conn: &mut PgConnection) -> Vec<String> {
    KeyRow::default().insert(conn);
    // On both sides of the boundaries of days in time zones.
    for (id, time) in
        [("a", "2026-01-01T00:00:00Z"), ("b", "2026-01-01T23:59:59.999999Z"), ("c", "2026-01-02T10:30:00Z")]
    {
        CallRow { id, created_at: at(time), cost_cents: Some(decimal("0.0001")), ..CallRow::default() }
            .insert(conn);
    }
    let answer = |method: &Method| {
        let answer = conn.transaction(|conn| (method.call)(conn, &Input::default()));
        let answer = answer.unwrap_or_else(|error| panic!("{}: {error:?}", method.name));
        if differs_from_call_to_call(method.name) { String::new() } else { comparable(&answer) }
    };
    METHODS.iter().map(answer).collect()
}

#[test]
fn tables_are_created_in_the_first_ordinary_schema_of_the_path() {
    for path in
        ["pg_temp, public", "pg_catalog, public", "public, pg_temp", "missing, information_schema, public"]
    {
        let (_database, mut conn) = empty_apart();
        conn.batch_execute(&format!("SET search_path = {path}; CREATE TEMP TABLE other ()")).unwrap();
        assert_eq!(migrate(&mut conn).unwrap(), names(), "{path}");
        let report = check(&mut conn).unwrap();
        assert_eq!(report.schema.as_deref(), Some("public"), "{path}");
        assert!(report.is_clean(), "{path}: {report}");
        assert_eq!(lines(&mut conn, "SELECT current_setting('search_path') AS line"), [path]);
    }
    let (_database, mut conn) = empty_apart();
    conn.batch_execute("SET search_path = pg_catalog, pg_temp").unwrap();
    assert!(matches!(migrate(&mut conn), Err(Error::NotReady(_))));
}

#[test]
fn the_prefix_is_widened_with_its_collation() {
    let Some((_database, mut conn)) = existing_service_apart() else { return };
    conn.batch_execute("ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(10) COLLATE \"C\"")
        .unwrap();
    let column = "SELECT format_type(atttypid, atttypmod) || ' ' || attcollation::regcollation AS line
         FROM pg_attribute WHERE attrelid = 'api_keys'::regclass AND attname = 'key_prefix'";
    let node = "SELECT relfilenode::text AS line FROM pg_class WHERE relname = 'ix_api_keys_key_prefix'";
    let before = lines(&mut conn, node);
    migrate(&mut conn).unwrap();
    assert_eq!(lines(&mut conn, column), ["character varying(12) \"C\""]);
    assert_eq!(lines(&mut conn, node), before, "the index was built again under a strong lock");
}

#[test]
fn a_domain_or_a_parent_of_the_prefix_skips_only_the_step_that_widens_it() {
    for (sql, name) in [
        (
            "CREATE DOMAIN short AS varchar(10); ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE short",
            "domain public.short",
        ),
        (
            "CREATE TABLE base (key_prefix varchar(10) NOT NULL); ALTER TABLE api_keys INHERIT base",
            "parent table public.base",
        ),
    ] {
        let Some((_database, mut conn)) = existing_service_apart() else { return };
        conn.batch_execute(sql).unwrap();
        assert!(check(&mut conn).unwrap().to_string().contains(&format!("because of {name}")), "{sql}");
        assert_eq!(migrate(&mut conn).unwrap().len(), names().len() - 1, "{sql}");
        assert!(migrate(&mut conn).unwrap().is_empty(), "{sql}");
    }
}

/// Alembic's usual names of constraints.
#[test]
fn a_unique_constraint_of_the_services_migrations_is_used_and_stays() {
    let Some((_database, mut conn)) = existing_service_apart() else { return };
    conn.batch_execute("ALTER TABLE api_keys ADD CONSTRAINT uq_api_keys_key_hash UNIQUE (key_hash)").unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), names());
    let report = check(&mut conn).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(Migrator::new().revert(&mut conn).unwrap().len(), names().len());
    conn.batch_execute("ALTER TABLE api_keys DROP CONSTRAINT uq_api_keys_key_hash").unwrap();
}

#[test]
fn an_event_trigger_that_refuses_statements_is_named_and_stops_a_step() {
    let (_database, mut conn) = empty_apart();
    conn.batch_execute(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
             'BEGIN RAISE EXCEPTION ''no changes on Fridays''; END';
         CREATE EVENT TRIGGER frozen ON ddl_command_start EXECUTE FUNCTION refuse()",
    )
    .unwrap();
    assert!(check(&mut conn).unwrap().to_string().contains("event trigger frozen"));
    let refused = migrate(&mut conn).unwrap_err();
    assert!(matches!(refused, Error::Migration(_)), "{refused:?}");
    let sources = std::iter::successors(Some(&refused as &dyn std::error::Error), |error| error.source());
    assert!(sources.map(ToString::to_string).any(|said| said.contains("no changes on Fridays")));
    conn.batch_execute("DROP EVENT TRIGGER frozen").unwrap();
    migrate(&mut conn).unwrap();
}
