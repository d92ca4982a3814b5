//! Databases with different owners, schemas, collations, encodings, languages, timeouts and publications.

use std::thread;
use std::time::Duration;

use api_keys_driver::{Error, KeyCursor, KeyId, KeysDriver, Migrator, Page, Progress, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::{Database, PrivateServer};

use crate::migrations::{cause, dump, empty, lines, names};
use crate::migrator::hold_up_a_build;
use crate::support::{
    KeyRow, TENANT, eventually, existing_service, existing_service_apart, key, partitioned_service,
    statements_of, tenant,
};

/// A private server, for roles and databases that no other test should see.
fn server() -> PrivateServer {
    PrivateServer::start_new().unwrap()
}

/// Connects to another database of the server, or as another role.
fn connect(database: &Database, parameters: &str) -> PgConnection {
    let socket = database.url().split("host=").nth(1).unwrap().split('&').next().unwrap();
    PgConnection::establish(&format!("host={socket} {parameters}")).unwrap()
}

/// Uses the drivers as an engine does, and reads the list by cursor and by pages.
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
fn an_owner_without_superuser_rights_migrates_its_own_schema() {
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

/// Migrates while a transaction of the service holds a lock for longer than a step waits at a time.
fn migrate_against_a_lock(
    conn: &mut PgConnection,
    database: &Database,
    patience: Duration,
) -> (Result<Vec<String>, Error>, usize) {
    let mut reader = database.connect().unwrap();
    reader.batch_execute("BEGIN; SELECT FROM api_keys").unwrap();
    let mut reader = Some(reader);
    let mut waits = 0;
    let migrated = Migrator::new()
        .wait_at_most(patience)
        .report_to(|progress| {
            waits += usize::from(matches!(progress, Progress::Waits { step: Some(_), .. }));
            if waits == 2
                && let Some(mut reader) = reader.take()
            {
                reader.batch_execute("COMMIT").unwrap();
            }
        })
        .migrate(conn);
    (migrated, waits)
}

/// Migrates while an index build waits for the transaction of the holder, until the build times out.
fn migrate_against_a_snapshot(
    conn: &mut PgConnection,
    holder: &mut PgConnection,
    observer: &mut PgConnection,
) -> Error {
    thread::scope(|scope| {
        let migrator =
            scope.spawn(|| Migrator::new().wait_at_most(Duration::from_secs(2)).migrate(conn).unwrap_err());
        hold_up_a_build(holder, observer);
        migrator.join().unwrap()
    })
}

#[test]
fn a_migration_waits_for_a_lock_also_if_messages_are_german() {
    let Some((database, mut conn)) = existing_service_apart() else { return };
    if conn.batch_execute("SET lc_messages = 'de_DE.utf8'").is_err() {
        eprintln!("skipped: the server has no German locale");
        return;
    }
    let name = lines(&mut conn, "SELECT current_database()::text AS line").remove(0);
    let role = format!("owner_of_{name}");
    let own = format!(
        "SELECT format('ALTER TABLE %s OWNER TO {role}', oid::regclass) AS line FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    );
    let own = lines(&mut conn, &own).join(";");
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}; {own};
         ALTER ROLE {role} SET lc_messages = 'de_DE.utf8'; ALTER DATABASE {name} SET lc_messages = 'de_DE.utf8'"
    ))
    .unwrap();
    let mut owner = connect(&database, &format!("user={role} dbname={name}"));
    let language = "SELECT current_setting('lc_messages') AS line";
    assert_eq!(lines(&mut owner, language), ["de_DE.utf8"]);
    let error = diesel::sql_query("SELECT 1 / 0").execute(&mut owner).unwrap_err().to_string();
    if !error.contains("durch Null") {
        eprintln!("skipped: the server has no German messages: {error}");
        return;
    }

    // The owner may not set the language. The superuser may, and sets it during the migration.
    let (gave_up, _) = migrate_against_a_lock(&mut owner, &database, Duration::from_millis(1));
    assert!(matches!(gave_up, Err(Error::MigrationWaits { .. })), "{gave_up:?}");
    let (migrated, waits) = migrate_against_a_lock(&mut owner, &database, Duration::from_secs(60));
    assert_eq!((migrated.unwrap().len() + 2, waits), (names().len(), 2));
    assert_eq!(lines(&mut owner, language), ["de_DE.utf8"]);
    Migrator::new().revert(&mut owner).unwrap();
    // It is known whom the build waited for if the role sees that session's transaction, as it does its own sessions'.
    let mut holder = connect(&database, &format!("user={role} dbname={name}"));
    let error = migrate_against_a_snapshot(&mut owner, &mut holder, &mut conn);
    assert!(matches!(&error, Error::MigrationWaits { holders, .. } if holders.0.len() == 1), "{error:?}");
    drop(holder);
    migrate(&mut owner).unwrap();
    Migrator::new().revert(&mut owner).unwrap();

    let mut superuser = database.connect().unwrap();
    assert_eq!(lines(&mut superuser, language), ["de_DE.utf8"]);
    superuser.batch_execute("ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(10)").unwrap();
    let (migrated, waits) = migrate_against_a_lock(&mut superuser, &database, Duration::from_secs(60));
    assert_eq!((migrated.unwrap().len(), waits), (names().len(), 2));
    assert_eq!(lines(&mut superuser, language), ["de_DE.utf8"]);
    superuser
        .batch_execute(&format!(
            "REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}"
        ))
        .unwrap();
}

#[test]
fn a_transaction_timeout_of_the_role_does_not_end_an_index_build() {
    let server = server();
    let database = server.create_database().unwrap();
    let mut admin = database.connect().unwrap();
    if admin.batch_execute("ALTER ROLE postgres SET transaction_timeout = '300ms'").is_err() {
        eprintln!("skipped: the server knows no transaction_timeout (PostgreSQL 17 and newer do)");
        return;
    }
    let mut conn = database.connect().unwrap();
    // A build waits for the transactions that began before it.
    let mut older = PgConnection::establish(database.url()).unwrap();
    older
        .batch_execute(
            "SET transaction_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class",
        )
        .unwrap();
    let waits = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query ~ 'CONCURRENTLY'
         AND wait_event_type = 'Lock' AND query_start < clock_timestamp() - interval '700 ms'";
    let mut conn = thread::scope(|scope| {
        let migrator = scope.spawn(move || {
            assert_eq!(migrate(&mut conn).unwrap(), names());
            conn
        });
        eventually("a build waits for longer than the timeout", || {
            assert!(!migrator.is_finished());
            diesel::sql_query(waits).execute(&mut admin).unwrap() > 0
        });
        older.batch_execute("COMMIT").unwrap();
        migrator.join().unwrap()
    });
    let timeout = "SELECT current_setting('transaction_timeout') AS line";
    assert_eq!(lines(&mut conn, timeout), ["300ms"], "the role's own timeout is put back");
}

#[test]
fn forced_row_security_is_an_error_and_hides_no_duplicates() {
    let Some((database, mut conn)) = existing_service() else { return };
    let name = lines(&mut conn, "SELECT current_database()::text AS line").remove(0);
    let role = format!("walled_in_{name}");
    for id in ["one", "two"] {
        KeyRow { id, key_prefix: "sk", key_hash: Some("same"), ..KeyRow::default() }.insert(&mut conn);
    }
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role};
         ALTER TABLE api_keys OWNER TO {role}; ALTER TABLE proxy_calls OWNER TO {role};
         ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
    ))
    .unwrap();
    let mut owner = connect(&database, &format!("user={role} dbname={name}"));
    assert_eq!(lines(&mut owner, "SELECT id::text AS line FROM api_keys"), [""; 0], "the policies hide all");
    let before = dump_of_the_service(&mut conn);

    let error = format!("{:?}", migrate(&mut owner).unwrap_err());
    assert!(error.contains("row-level security"), "{error}");
    assert_eq!(dump_of_the_service(&mut conn), before);

    conn.batch_execute(&format!("ALTER ROLE {role} BYPASSRLS")).unwrap();
    let error = migrate(&mut connect(&database, &format!("user={role} dbname={name}"))).unwrap_err();
    assert!(cause(&error).contains("first ids: one, two"), "{}", cause(&error));
    conn.batch_execute("UPDATE api_keys SET key_hash = id").unwrap();
    migrate(&mut connect(&database, &format!("user={role} dbname={name}"))).unwrap();
    conn.batch_execute(&format!(
        "REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}"
    ))
    .unwrap();
}

fn dump_of_the_service(conn: &mut PgConnection) -> Vec<String> {
    lines(
        conn,
        "SELECT format('%s %s', relkind, relname) AS line FROM pg_class WHERE relnamespace = 'public'::regnamespace
         UNION ALL SELECT format('%s %s', attrelid::regclass, attname) FROM pg_attribute
         WHERE attrelid IN ('api_keys'::regclass, 'proxy_calls'::regclass)
         ORDER BY 1",
    )
}

/// `tests/versions.sh` names the folder of a server that is too old.
#[test]
fn a_server_that_is_too_old_is_refused_in_the_first_statement() {
    let Some(bin) = std::env::var_os("OLD_PG_BIN") else {
        eprintln!("skipped: OLD_PG_BIN names no server that is too old");
        return;
    };
    let server = PrivateServer::start_from(bin.into()).unwrap();
    let database = server.create_database().unwrap();
    let mut conn = database.connect().unwrap();
    let version = lines(&mut conn, "SELECT current_setting('server_version') AS line").remove(0);
    let (refused, sent) = statements_of(&mut conn, migrate);
    let error = refused.unwrap_err();
    assert!(matches!(&error, Error::UnsupportedServer { .. }), "{error:?}");
    let said = error.to_string();
    assert!(said.contains(&version) && said.contains("14"), "{said}");
    assert_eq!(sent.len(), 1, "{sent:#?}");
    let report = check(&mut conn).unwrap();
    assert_eq!((report.server_version, report.obstacles.len()), (version, 1));
    assert_eq!(
        lines(&mut conn, "SELECT relname::text AS line FROM pg_class WHERE relnamespace = 2200"),
        [""; 0]
    );
}

#[test]
fn each_collation_and_encoding_has_the_same_schema_and_correct_cursors() {
    let server = server();
    let database = server.create_database().unwrap();
    let mut admin = database.connect().unwrap();
    let mut databases = vec![
        ("in_c", "LOCALE 'C' ENCODING 'UTF8'"),
        ("in_ascii", "LOCALE 'C' ENCODING 'SQL_ASCII'"),
        ("in_latin1", "LOCALE 'C' ENCODING 'LATIN1'"),
    ];
    let version = lines(&mut admin, "SELECT current_setting('server_version_num') AS line").remove(0);
    let has_icu =
        lines(&mut admin, "SELECT collname::text AS line FROM pg_collation WHERE collprovider = 'i'");
    if version.as_str() >= "150000" && !has_icu.is_empty() {
        databases.push(("in_icu", "LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' LOCALE 'C' ENCODING 'UTF8'"));
    } else {
        eprintln!("skipped: the server has no ICU");
    }
    let mut schemas = Vec::new();
    for (name, options) in databases {
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
fn a_publication_of_all_tables_blocks_neither_the_migration_nor_writes() {
    for create in [existing_service, partitioned_service] {
        let Some((_database, mut conn)) = create() else { return };
        conn.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").unwrap();
        assert_eq!(migrate(&mut conn).unwrap(), names());
        assert!(check(&mut conn).unwrap().is_clean());
        use_it(&mut conn);
    }
}

/// Creates operators and functions with common names, for types that have no exact match in `pg_catalog`.
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
fn no_foreign_operator_or_function_runs_in_a_migration_or_a_check() {
    for create in [existing_service, partitioned_service] {
        let Some((_database, mut conn)) = create() else { return };
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
fn all_databases_end_with_the_same_objects_of_the_crate() {
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
    for create in [existing_service, partitioned_service] {
        let Some((_database, mut conn)) = create() else { return };
        migrate(&mut conn).unwrap();
        let differs = |line: &&String| !expected.contains(line);
        let found = ours(&mut conn);
        let others: Vec<_> = found.iter().filter(differs).map(|line| &line[..line.len().min(200)]).collect();
        assert_eq!((others, found.len()), (Vec::new(), expected.len()));
    }
}
