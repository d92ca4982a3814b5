//! Databases as people have them: owners, schemas, collations, encodings, timeouts, publications, neighbours.

use std::time::Duration;

use api_keys_driver::{KeyCursor, KeyId, KeysDriver, Migrator, Page, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::{Database, PrivateServer};

use crate::migrations::{dump, empty, lines, names};
use crate::support::{KeyRow, TENANT, existing_service, key, partitioned_service, tenant};

/// A server of the test's own, for roles and databases that nobody else should see.
fn server() -> PrivateServer {
    PrivateServer::start_new().unwrap()
}

/// Connects to another database of the server, or as another role.
fn connect(database: &Database, parameters: &str) -> PgConnection {
    let socket = database.url().split("host=").nth(1).unwrap().split('&').next().unwrap();
    PgConnection::establish(&format!("host={socket} {parameters}")).unwrap()
}

/// Does what an engine does, and walks the list by the cursor and by pages.
fn use_it(conn: &mut PgConnection) {
    let ids = ["B", "a", "b", "A", "ä", "z", "Z", "10", "9", "-", "_", "é"];
    for id in ids {
        KeyRow { id, ..KeyRow::default() }.insert(conn);
    }
    let mut keys = KeysDriver::new(conn);
    let listed: Vec<KeyId> =
        keys.fetch_keys(&tenant(), Page::default()).unwrap().into_iter().map(|key| key.id).collect();
    assert_eq!(listed.len(), ids.len());
    let mut walked: Vec<KeyId> = Vec::new();
    let mut cursor = None;
    loop {
        let page = keys.fetch_keys_after(&tenant(), cursor.as_ref(), 5).unwrap();
        let Some(last) = page.last() else { break };
        cursor = Some(KeyCursor::from(last));
        walked.extend(page.into_iter().map(|key| key.id));
        assert!(walked.len() <= ids.len(), "{walked:?}");
    }
    assert_eq!(walked, listed);
    assert!(keys.fetch_key_by_id(&tenant(), &key("ä")).unwrap().is_some());
    conn.batch_execute("UPDATE api_keys SET is_frozen = true WHERE id = 'ä'").unwrap();
    let mut keys = KeysDriver::new(conn);
    let events = keys.fetch_key_events(&tenant(), &key("ä"), Page::default()).unwrap();
    assert_eq!(events.len(), 2);
}

#[test]
fn an_owner_that_is_no_superuser_migrates_its_own_schema() {
    let server = server();
    let database = server.create_database().unwrap();
    let mut admin = database.connect().unwrap();
    admin
        .batch_execute(
            "CREATE ROLE service LOGIN; CREATE SCHEMA \"The Service\" AUTHORIZATION service;
             ALTER ROLE service SET search_path = \"The Service\"; REVOKE ALL ON SCHEMA public FROM PUBLIC",
        )
        .unwrap();
    let name = lines(&mut admin, "SELECT current_database()::text AS line").remove(0);
    let mut conn = connect(&database, &format!("user=service dbname={name}"));
    assert_eq!(migrate(&mut conn).unwrap(), names());
    assert!(check(&mut conn).unwrap().is_clean());
    use_it(&mut conn);
    assert_eq!(Migrator::new().revert(&mut conn).unwrap().len(), names().len());
}

#[test]
fn a_role_with_a_statement_timeout_of_a_millisecond_migrates() {
    let server = server();
    let database = server.create_database().unwrap();
    database.connect().unwrap().batch_execute("ALTER ROLE postgres SET statement_timeout = '1ms'").unwrap();
    let mut conn = database.connect().unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), names());
    assert!(check(&mut conn).unwrap().is_clean());
    let mut settings = || {
        conn.batch_execute("SET LOCAL statement_timeout = 0").ok();
        diesel::sql_query("SELECT FROM pg_settings WHERE name = 'statement_timeout' AND setting = '1'")
            .execute(&mut conn)
    };
    while settings().is_err() {}
    assert_eq!(settings().unwrap_or(1), 1, "the role's own timeout is put back");
}

#[test]
fn each_collation_and_encoding_has_the_same_schema_and_a_walk_that_is_right() {
    let server = server();
    let database = server.create_database().unwrap();
    let mut admin = database.connect().unwrap();
    let mut worlds = vec![
        ("in_c", "LOCALE 'C' ENCODING 'UTF8'"),
        ("in_ascii", "LOCALE 'C' ENCODING 'SQL_ASCII'"),
        ("in_latin1", "LOCALE 'C' ENCODING 'LATIN1'"),
    ];
    let version = lines(&mut admin, "SELECT current_setting('server_version_num') AS line").remove(0);
    let has_icu =
        lines(&mut admin, "SELECT collname::text AS line FROM pg_collation WHERE collprovider = 'i'");
    if version.as_str() >= "150000" && !has_icu.is_empty() {
        worlds.push(("in_icu", "LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' LOCALE 'C' ENCODING 'UTF8'"));
    } else {
        eprintln!("skipped: the server has no ICU");
    }
    let mut schemas = Vec::new();
    for (name, options) in worlds {
        admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0 {options}")).unwrap();
        let mut conn = connect(&database, &format!("user=postgres dbname={name}"));
        assert_eq!(migrate(&mut conn).unwrap(), names(), "{name}");
        let report = check(&mut conn).unwrap();
        let found: Vec<_> = report.obstacles.iter().map(|obstacle| obstacle.name.as_str()).collect();
        assert_eq!(found, if name == "in_ascii" { vec!["encoding"] } else { vec![] }, "{name}");
        use_it(&mut conn);
        let mut schema = dump(&mut conn);
        schema.sort();
        schemas.push((name, schema));
    }
    for (name, schema) in &schemas[1..] {
        assert_eq!(schema, &schemas[0].1, "{name}");
    }
}

#[test]
fn a_publication_of_all_tables_stops_neither_the_migration_nor_the_writes() {
    for world in [existing_service, partitioned_service] {
        let Some((_database, mut conn)) = world() else { return };
        conn.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").unwrap();
        assert_eq!(migrate(&mut conn).unwrap(), names());
        assert!(check(&mut conn).unwrap().is_clean());
        use_it(&mut conn);
    }
}

/// Operators and functions of the names that SQL uses, for the types that have no exact match in `pg_catalog`.
fn spoil(conn: &mut PgConnection) {
    conn.batch_execute(
        "CREATE FUNCTION trap() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trapped''; END';
         CREATE FUNCTION trap(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()';
         CREATE FUNCTION trap(name, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()';
         CREATE FUNCTION trap(varchar, text) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()';
         CREATE FUNCTION trap(integer, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()';
         CREATE FUNCTION trap(numeric, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()';
         CREATE FUNCTION trap(regclass, oid) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()';
         CREATE FUNCTION trap(oid, regclass) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()';
         CREATE FUNCTION trap(record, record) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trapped''; END';
         CREATE FUNCTION now(integer DEFAULT 0) RETURNS timestamptz LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trapped''; END';
         CREATE FUNCTION to_regclass(varchar) RETURNS regclass LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trapped''; END';
         CREATE FUNCTION count(varchar) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trapped''; END';
         CREATE FUNCTION set_config(varchar, varchar, boolean) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trapped''; END'",
    )
    .unwrap();
    for types in [
        "varchar, varchar",
        "name, varchar",
        "varchar, text",
        "integer, bigint",
        "regclass, oid",
        "oid, regclass",
    ] {
        let (left, right) = types.split_once(", ").unwrap();
        for operator in ["=", "<>", "<", ">", "~", "||"] {
            let sql = format!(
                "CREATE OPERATOR public.{operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.trap)"
            );
            conn.batch_execute(&sql).unwrap();
        }
    }
}

#[test]
fn no_neighbours_operator_or_function_runs_in_a_migration_or_a_check() {
    for world in [existing_service, partitioned_service] {
        let Some((_database, mut conn)) = world() else { return };
        conn.batch_execute(&format!(
            "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash) VALUES ('1', '{TENANT}', 'K', 'sk', 'h')"
        ))
        .unwrap();
        spoil(&mut conn);
        conn.batch_execute("SET search_path = public, pg_catalog").unwrap();
        assert!(!check(&mut conn).unwrap().pending.is_empty());
        assert_eq!(
            Migrator::new().wait_at_most(Duration::from_secs(30)).migrate(&mut conn).unwrap(),
            names()
        );
        assert!(check(&mut conn).unwrap().is_clean());
        Migrator::new().revert(&mut conn).unwrap();
    }
}

#[test]
fn all_worlds_end_in_the_same_objects_of_the_crate() {
    let ours = |conn: &mut PgConnection| -> Vec<String> {
        dump(conn)
            .into_iter()
            .filter(|line| {
                !line.contains(" ON public.calls_")
                    && (line.contains("api_key_events")
                        || line.contains("revision")
                        || line.contains("FUNCTION"))
            })
            .collect()
    };
    let (_database, mut conn) = empty();
    migrate(&mut conn).unwrap();
    let expected = ours(&mut conn);
    assert!(expected.len() > 20);
    for world in [existing_service, partitioned_service] {
        let Some((_database, mut conn)) = world() else { return };
        migrate(&mut conn).unwrap();
        let differs = |line: &&String| !expected.contains(line);
        let found = ours(&mut conn);
        let others: Vec<_> = found.iter().filter(differs).map(|line| &line[..line.len().min(200)]).collect();
        assert_eq!((others, found.len()), (Vec::new(), expected.len()));
    }
}

#[test]
fn check_takes_milliseconds_among_five_hundred_tables() {
    let (_database, mut conn) = empty();
    migrate(&mut conn).unwrap();
    conn.batch_execute(
        "DO $$ BEGIN FOR n IN 1..500 LOOP
             EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, a text, b timestamptz, UNIQUE (a, b))', n);
         END LOOP; END $$; ANALYZE",
    )
    .unwrap();
    let mut times: Vec<_> = (0..21)
        .map(|_| {
            let started = std::time::Instant::now();
            assert!(check(&mut conn).unwrap().is_clean());
            started.elapsed()
        })
        .collect();
    times.sort();
    println!("check among 500 tables: median {:?}, fastest {:?}", times[10], times[0]);
    assert!(times[0] < Duration::from_millis(500), "{times:?}");
}
