//! Names that need quotes, and tables as a service may have changed them.

use api_keys_driver::{Error, Migrator, check, migrate};
use diesel::connection::SimpleConnection;

use crate::migrations::names;
use crate::support::{CallRow, KeyRow, empty_apart, existing_service_apart};

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
    ] {
        let Some((_database, mut conn)) = existing_service_apart() else { return };
        conn.batch_execute(sql).unwrap();
        migrate(&mut conn).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let report = check(&mut conn).unwrap();
        assert!(report.is_clean(), "{sql}: {report}");
    }
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
