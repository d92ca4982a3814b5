//! Events are in the schema of their keys' table, also after the schema is renamed.

use api_keys_driver::{Error, KeysDriver, MIGRATIONS, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_migrations::MigrationHarness;
use throwaway_postgres::{Database, PrivateServer};

use crate::migrations::lines;

fn kinds(conn: &mut PgConnection, schema: &str) -> String {
    lines(conn, &format!("SELECT kind AS line FROM {schema}.api_key_events ORDER BY transaction_id, id"))
        .join(" ")
}

/// Writes, changes and deletes a key, as the service does.
fn live(conn: &mut PgConnection, schema: &str) {
    conn.batch_execute(&format!(
        "INSERT INTO {schema}.api_keys (id, tenant_id, name, key_prefix, key_hash)
             VALUES ('key', 'tenant', 'Key', 'sk', 'hash');
         UPDATE {schema}.api_keys SET total_requests = 1;
         UPDATE {schema}.api_keys SET is_frozen = true;
         UPDATE {schema}.api_keys SET tenant_id = 'other';
         DELETE FROM {schema}.api_keys"
    ))
    .unwrap();
}

const LIFE: &str = "inserted frozen deleted inserted deleted";

fn migrated_in(schema: &str) -> (Database, PgConnection) {
    let database = throwaway_postgres::empty().unwrap();
    let mut conn = database.connect().unwrap();
    conn.batch_execute(&format!("CREATE SCHEMA {schema}; SET search_path = {schema}")).unwrap();
    migrate(&mut conn).unwrap();
    (database, conn)
}

#[test]
fn a_renamed_schema_keeps_its_events_also_if_another_gets_its_name() {
    let (_database, mut conn) = migrated_in("app");
    conn.batch_execute("ALTER SCHEMA app RENAME TO \"App 2\"; CREATE SCHEMA app; SET search_path = app")
        .unwrap();
    live(&mut conn, "\"App 2\"");
    assert_eq!(kinds(&mut conn, "\"App 2\""), LIFE);

    migrate(&mut conn).unwrap();
    live(&mut conn, "\"App 2\"");
    live(&mut conn, "app");
    assert_eq!(kinds(&mut conn, "\"App 2\""), format!("{LIFE} {LIFE}"));
    assert_eq!(kinds(&mut conn, "app"), LIFE);
    let highest =
        "SELECT max(revision)::text AS line FROM \"App 2\".api_key_events WHERE tenant_id = 'tenant'";
    assert_eq!(lines(&mut conn, highest), ["6"], "revisions continue after those of the first key");
    conn.batch_execute("TRUNCATE \"App 2\".api_keys").unwrap();
}

#[test]
fn a_session_continues_to_write_after_the_schema_was_renamed() {
    let (database, mut conn) = migrated_in("app");
    live(&mut conn, "app");
    let mut other = database.connect().unwrap();
    other.batch_execute("ALTER SCHEMA app RENAME TO app2").unwrap();
    live(&mut conn, "app2");
    other.batch_execute("ALTER SCHEMA app2 RENAME TO app").unwrap();
    live(&mut conn, "app");
    assert_eq!(kinds(&mut conn, "app"), [LIFE; 3].join(" "));
}

#[test]
fn each_schema_of_a_search_path_by_user_has_its_own_events() {
    let database = throwaway_postgres::empty().unwrap();
    let mut conn = database.connect().unwrap();
    let role = lines(&mut conn, "SELECT 'user_of_' || current_database() AS line").remove(0);
    conn.batch_execute(&format!(
        "CREATE ROLE {role}; CREATE SCHEMA {role} AUTHORIZATION {role};
         SET search_path = \"$user\", public; SET ROLE {role}"
    ))
    .unwrap();
    migrate(&mut conn).unwrap();
    conn.batch_execute("RESET ROLE").unwrap();
    live(&mut conn, &role);
    assert_eq!(kinds(&mut conn, &role), LIFE);
    assert!(
        lines(
            &mut conn,
            "SELECT relname::text AS line FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        )
        .is_empty()
    );
    conn.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
}

#[test]
fn the_service_writes_after_a_revert_and_a_migration_under_another_path() {
    let (_database, mut conn) = migrated_in("app");
    live(&mut conn, "app");
    // api_keys has a row, so that the tables stay.
    conn.batch_execute("INSERT INTO app.api_keys (id, tenant_id, name, key_prefix, key_hash) VALUES ('a', 't', 'n', 'p', 'h')")
        .unwrap();
    conn.revert_all_migrations(MIGRATIONS).unwrap();
    live(&mut conn, "app");
    conn.batch_execute("CREATE SCHEMA first; SET search_path = first, app").unwrap();
    migrate(&mut conn).unwrap();
    live(&mut conn, "app");
    assert_eq!(kinds(&mut conn, "app"), format!("{LIFE} inserted {LIFE}"));
}

#[test]
fn writes_in_a_schema_without_events_succeed_with_a_warning() {
    let (_database, mut conn) = migrated_in("app");
    conn.batch_execute("CREATE SCHEMA elsewhere; ALTER TABLE app.api_keys SET SCHEMA elsewhere").unwrap();
    live(&mut conn, "elsewhere");
    assert_eq!(kinds(&mut conn, "app"), "");
    conn.batch_execute("ALTER TABLE elsewhere.api_keys SET SCHEMA app").unwrap();
    live(&mut conn, "app");
    assert_eq!(kinds(&mut conn, "app"), LIFE);
}

#[test]
fn triggers_of_another_schema_do_not_count() {
    let (_database, mut conn) = migrated_in("app");
    let position = KeysDriver::new(&mut conn).fetch_key_events_head().unwrap();
    conn.batch_execute("CREATE SCHEMA second; SET search_path = second").unwrap();
    migrate(&mut conn).unwrap();
    let refused = KeysDriver::new(&mut conn).fetch_key_events_after(Some(&position), 1);
    assert!(matches!(refused, Err(Error::PositionElsewhere)), "{refused:?}");
    conn.batch_execute("SET search_path = app").unwrap();
    KeysDriver::new(&mut conn).fetch_key_events_after(Some(&position), 1).unwrap();
    conn.batch_execute("DROP TRIGGER \"~api_keys_tell\" ON app.api_keys").unwrap();
    let refused = KeysDriver::new(&mut conn).fetch_key_events_head();
    assert!(matches!(refused, Err(Error::EventsNotRecorded)), "{refused:?}");
}

/// Two servers on which everything has the same object and transaction ids.
#[test]
fn a_position_of_another_server_is_refused_although_all_ids_are_equal() {
    let servers = [(); 2].map(|()| PrivateServer::start_new().unwrap());
    let [first, second] = servers.each_ref().map(|server| {
        let database = server.create_database().unwrap();
        let mut conn = database.connect().unwrap();
        migrate(&mut conn).unwrap();
        let position = KeysDriver::new(&mut conn).fetch_key_events_head().unwrap();
        let ids = "SELECT string_agg(concat(oid, ':', xmin), ',' ORDER BY oid) AS line FROM pg_trigger";
        (lines(&mut conn, ids), position, database, conn)
    });
    let (ids, position, ..) = first;
    let (other_ids, _, _database, mut conn) = second;
    assert_eq!(ids, other_ids, "otherwise the test shows nothing");
    let refused = KeysDriver::new(&mut conn).fetch_key_events_after(Some(&position), 1);
    assert!(matches!(refused, Err(Error::PositionElsewhere)), "{refused:?}");
}

/// A sharded server has views over the shards of a worker.
#[test]
fn a_view_over_the_keys_is_followed_until_it_is_created_again() {
    let (_database, mut conn) = migrated_in("app");
    let view = "CREATE VIEW api_keys AS SELECT * FROM app.api_keys";
    conn.batch_execute(&format!("CREATE SCHEMA views; SET search_path = views, app; {view}")).unwrap();
    let position = KeysDriver::new(&mut conn).fetch_key_events_head().unwrap();
    KeysDriver::new(&mut conn).fetch_key_events_after(Some(&position), 1).unwrap();
    conn.batch_execute(&format!("DROP VIEW api_keys; {view}")).unwrap();
    let refused = KeysDriver::new(&mut conn).fetch_key_events_after(Some(&position), 1);
    assert!(matches!(refused, Err(Error::PositionElsewhere)), "{refused:?}");
}
