//! The migrator when it is killed or blocked, in a transaction, in another schema, or without rights.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::{Error, Migrator, Progress, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::migrations::{assert_shape, catalog, cause, count, empty, lines, names};
use crate::support::{eventually, existing_service, partitioned_service, server_with, wait_until_one_waits};

const URL: &str = "API_KEYS_DRIVER_TEST_MIGRATE";

/// The child process of other tests. It is a test, because a test binary has no other entry point.
#[test]
#[ignore = "the child process of other tests"]
fn child() {
    let Ok(url) = std::env::var(URL) else { return };
    migrate(&mut PgConnection::establish(&url).unwrap()).unwrap();
}

/// Migrates in a process that can be killed.
pub(crate) fn migrate_in_a_process(url: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "migrator::child", "--ignored", "--quiet"])
        .env(URL, url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

pub(crate) const BUILDS: &str = "SELECT FROM pg_stat_activity WHERE datname = current_database()
     AND query LIKE 'CREATE%INDEX CONCURRENTLY%' AND state = 'active'";

/// Opens a transaction with a snapshot that an index build waits for. It is less than a second old when the build
/// begins.
pub(crate) fn hold_up_a_build(holder: &mut PgConnection, observer: &mut PgConnection) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < deadline, "nothing was built");
        holder.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class LIMIT 1").unwrap();
        let young_until = Instant::now() + Duration::from_millis(400);
        while Instant::now() < young_until {
            let waits = format!("{BUILDS} AND wait_event_type = 'Lock'");
            if diesel::sql_query(waits).execute(observer).unwrap() > 0 {
                return;
            }
        }
        holder.batch_execute("COMMIT").unwrap();
    }
}

fn open(database: &Database) -> PgConnection {
    database.connect().unwrap()
}

fn lock_is_free(conn: &mut PgConnection) -> bool {
    lines(
        conn,
        "SELECT pid::text AS line FROM pg_locks WHERE locktype = 'advisory'
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .is_empty()
}

#[test]
fn the_build_of_a_killed_process_is_waited_for_and_used() {
    let (database, mut conn) = empty();
    let (mut holder, mut observer) = (open(&database), open(&database));
    let mut child = migrate_in_a_process(database.url());
    hold_up_a_build(&mut holder, &mut observer);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(diesel::sql_query(BUILDS).execute(&mut observer).unwrap(), 1, "the server continues to build");

    // The error names the session that still builds.
    let error = Migrator::new().wait_at_most(Duration::from_millis(100)).migrate(&mut conn).unwrap_err();
    assert!(matches!(&error, Error::MigrationWaits { holders, .. } if holders.0.len() == 1), "{error:?}");

    let (told, waits) = mpsc::channel();
    let applied = thread::scope(|scope| {
        let migrator = scope.spawn(|| {
            let told = told;
            Migrator::new().report_to(move |progress| told.send(progress.clone()).unwrap()).migrate(&mut conn)
        });
        assert!(matches!(waits.recv().unwrap(), Progress::Waits { step: None, .. }));
        holder.batch_execute("COMMIT").unwrap();
        migrator.join().unwrap().unwrap()
    });
    assert!(names().ends_with(&applied), "{applied:?}");
    assert_shape(&mut conn);
    assert!(migrate(&mut conn).unwrap().is_empty());
}

#[test]
fn an_index_that_was_created_by_hand_is_used_if_it_is_the_same() {
    let Some((_database, mut conn)) = existing_service() else { return };
    conn.batch_execute(
        "CREATE UNIQUE INDEX uq_api_keys_key_hash ON api_keys (key_hash) WITH (fillfactor = 90)",
    )
    .unwrap();
    let oid = "SELECT 'uq_api_keys_key_hash'::regclass::oid::text AS line";
    let by_hand = lines(&mut conn, oid);
    assert_eq!(migrate(&mut conn).unwrap(), names());
    assert_eq!(lines(&mut conn, oid), by_hand);
}

#[test]
fn another_index_or_table_with_the_name_is_reported_with_the_expected_one() {
    let wanted = "CREATE UNIQUE INDEX CONCURRENTLY \"uq_api_keys_key_hash\" ON \"public\".\"api_keys\" USING btree (key_hash)";
    for other in [
        "CREATE INDEX uq_api_keys_key_hash ON api_keys (key_hash)",
        "CREATE UNIQUE INDEX uq_api_keys_key_hash ON api_keys (key_hash, id)",
        "CREATE UNIQUE INDEX uq_api_keys_key_hash ON api_keys (key_hash) WHERE is_frozen",
        "CREATE UNIQUE INDEX uq_api_keys_key_hash ON users (email)",
        "CREATE TABLE uq_api_keys_key_hash ()",
    ] {
        let Some((_database, mut conn)) = existing_service() else { return };
        conn.batch_execute(other).unwrap();
        let error = migrate(&mut conn).unwrap_err();
        assert!(cause(&error).contains(wanted), "{other}: {}", cause(&error));
        assert!(lock_is_free(&mut conn));
    }
}

/// Runs the SQL when the step begins, after everything was checked, and migrates.
fn migrate_with(
    conn: &mut PgConnection,
    database: &Database,
    step: &str,
    sql: &str,
) -> Result<Vec<String>, Error> {
    let mut other = open(database);
    Migrator::new()
        .report_to(|progress| {
            if matches!(progress, Progress::Step { name, .. } if name.ends_with(step)) {
                other.batch_execute(sql).unwrap();
            }
        })
        .migrate(conn)
}

#[test]
fn another_index_created_during_the_migration_is_named_and_kept() {
    let cases = [
        (
            "api_keys_key_hash_unique",
            "CREATE UNIQUE INDEX uq_api_keys_key_hash ON api_keys (id)",
            "uq_api_keys_key_hash",
        ),
        ("api_keys_key_hash_unique", "CREATE TABLE uq_api_keys_key_hash ()", "uq_api_keys_key_hash"),
        (
            "proxy_calls_key_usage",
            "CREATE INDEX ix_proxy_calls_key_usage ON proxy_calls (model)",
            "ix_proxy_calls_key_usage",
        ),
    ];
    for create in [existing_service, partitioned_service] {
        for (step, sql, name) in cases {
            let Some((database, mut conn)) = create() else { return };
            let error = migrate_with(&mut conn, &database, step, sql).unwrap_err();
            let cause = cause(&error);
            assert!(
                cause.contains(&format!("public.{name} is not the index that the step builds")),
                "{cause}"
            );
            assert!(cause.contains(&format!("INDEX CONCURRENTLY \"{name}\" ON")), "{cause}");
            let oid = format!("SELECT '{name}'::regclass::oid::text AS line");
            let theirs = lines(&mut conn, &oid);
            assert!(matches!(migrate(&mut conn), Err(Error::NotReady(_))), "it is known beforehand now");
            assert_eq!(lines(&mut conn, &oid), theirs);
            let kind = if sql.contains("TABLE") { "TABLE" } else { "INDEX" };
            conn.batch_execute(&format!("ALTER {kind} {name} RENAME TO theirs")).unwrap();
            migrate(&mut conn).unwrap();
            assert!(check(&mut conn).unwrap().is_clean());
        }
    }
}

#[test]
fn another_index_with_the_name_for_a_partition_is_named_and_kept() {
    let Some((database, mut conn)) = partitioned_service() else { return };
    let name = "ix_proxy_calls_key_usage_calls_2025";
    let sql = format!("CREATE INDEX {name} ON calls_2025 (model)");
    let error = migrate_with(&mut conn, &database, "proxy_calls_key_usage", &sql).unwrap_err();
    let cause = cause(&error);
    assert!(cause.contains(&format!("public.{name} is not the index that the step builds")), "{cause}");
    conn.batch_execute(&format!("ALTER INDEX {name} RENAME TO theirs")).unwrap();
    migrate(&mut conn).unwrap();
    assert!(check(&mut conn).unwrap().is_clean());
}

#[test]
fn an_attached_part_that_lacks_parts_gets_them() {
    let Some((_database, mut conn)) = partitioned_service() else { return };
    let on = "USING btree (tenant_id, api_key_id, created_at) INCLUDE (cost_cents)";
    conn.batch_execute(&format!(
        "CREATE INDEX ix_proxy_calls_key_usage ON ONLY proxy_calls {on}; CREATE INDEX of_month ON ONLY calls_2026_01 {on};
         ALTER INDEX ix_proxy_calls_key_usage ATTACH PARTITION of_month"
    ))
    .unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), names());
    let report = check(&mut conn).unwrap();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn the_same_index_created_during_the_migration_is_used() {
    let Some((database, mut conn)) = existing_service() else { return };
    let sql = "CREATE UNIQUE INDEX uq_api_keys_key_hash ON api_keys (key_hash)";
    assert_eq!(migrate_with(&mut conn, &database, "key_hash_unique", sql).unwrap(), names());
    assert_shape(&mut conn);
}

/// The identity of every object. A new object with the same definition has another one.
const IDENTITIES: &str = "SELECT 'class ' || oid || ' ' || relname AS line FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE '\\_\\_diesel%'
     UNION ALL SELECT 'trigger ' || oid || ' ' || tgname FROM pg_trigger
     UNION ALL SELECT 'constraint ' || oid || ' ' || conname FROM pg_constraint
         WHERE connamespace = 'public'::regnamespace AND conname NOT LIKE '\\_\\_diesel%'
     UNION ALL SELECT 'column ' || attrelid || ' ' || attnum || ' ' || attname FROM pg_attribute
     UNION ALL SELECT 'function ' || oid || ' ' || proname FROM pg_proc
         WHERE pronamespace = 'public'::regnamespace
     ORDER BY 1";

#[test]
fn objects_with_the_same_definition_are_kept() {
    for create in [existing_service, partitioned_service] {
        let Some((_database, mut conn)) = create() else { return };
        migrate(&mut conn).unwrap();
        conn.batch_execute("TRUNCATE __diesel_schema_migrations").unwrap();
        let before = lines(&mut conn, IDENTITIES);
        assert_eq!(migrate(&mut conn).unwrap(), names());
        let after = lines(&mut conn, IDENTITIES);
        let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
        assert!(lost.is_empty(), "{lost:#?}");
        assert_eq!(before.len(), after.len());
    }
}

#[test]
fn a_transaction_is_refused_and_no_lock_is_left_behind() {
    let (database, mut conn) = empty();
    let refused = conn.transaction(migrate);
    assert!(matches!(refused, Err(Error::AlreadyInTransaction)), "{refused:?}");
    conn.batch_execute("BEGIN").unwrap();
    let refused = migrate(&mut conn);
    assert!(matches!(refused, Err(Error::AlreadyInTransaction)), "{refused:?}");
    conn.batch_execute("ROLLBACK").unwrap();

    assert!(lock_is_free(&mut conn));
    assert_eq!(migrate(&mut open(&database)).unwrap(), names());
}

#[test]
fn a_panic_in_the_callback_releases_the_lock_and_restores_the_settings() {
    let (_database, mut conn) = empty();
    conn.batch_execute("SET statement_timeout = '77s'; SET search_path = public, pg_catalog").unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = Migrator::new().report_to(|_| panic!("on purpose")).migrate(&mut conn);
    }));
    panicked.unwrap_err();
    assert!(lock_is_free(&mut conn));
    let settings =
        "SELECT current_setting('statement_timeout') || ' ' || current_setting('search_path') AS line";
    assert_eq!(lines(&mut conn, settings), ["77s public, pg_catalog"]);
    assert_eq!(migrate(&mut conn).unwrap(), names());
}

#[test]
fn without_pending_steps_any_role_returns_at_once_even_if_the_lock_is_held() {
    let (database, mut conn) = empty();
    migrate(&mut conn).unwrap();
    let mut idle = open(&database);
    idle.batch_execute("SELECT pg_advisory_lock(('x' || encode('api_keys', 'hex'))::bit(64)::bigint)")
        .unwrap();
    assert!(!lock_is_free(&mut conn));
    assert!(migrate(&mut conn).unwrap().is_empty());

    conn.batch_execute("SET default_transaction_read_only = on").unwrap();
    assert!(migrate(&mut conn).unwrap().is_empty());
    conn.batch_execute("RESET default_transaction_read_only").unwrap();

    conn.batch_execute(
        "DROP ROLE IF EXISTS reads_and_writes; CREATE ROLE reads_and_writes;
         GRANT SELECT, INSERT, UPDATE, DELETE ON api_keys, proxy_calls, api_key_events TO reads_and_writes;
         SET ROLE reads_and_writes",
    )
    .unwrap();
    assert!(migrate(&mut conn).unwrap().is_empty());
    conn.batch_execute("RESET ROLE; DROP OWNED BY reads_and_writes; DROP ROLE reads_and_writes").unwrap();
}

#[test]
fn the_wait_for_the_lock_of_an_idle_session_ends_and_names_the_holder() {
    let (database, mut conn) = empty();
    let mut idle = open(&database);
    idle.batch_execute(
        "SET application_name = 'idle one';
         SELECT pg_advisory_lock(('x' || encode('api_keys', 'hex'))::bit(64)::bigint)",
    )
    .unwrap();
    let error = Migrator::new().wait_at_most(Duration::from_millis(50)).migrate(&mut conn).unwrap_err();
    assert!(error.to_string().contains("application idle one, idle since"), "{error}");
    assert_eq!(catalog(&mut conn), [""; 0]);
}

#[test]
fn a_build_waits_for_old_transactions_names_them_and_times_out() {
    let (database, mut conn) = empty();
    let mut old = open(&database);
    old.batch_execute(
        "SET application_name = 'old one'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class LIMIT 1",
    )
    .unwrap();
    let mut age = open(&database);
    eventually("the transaction is old", || {
        let old = "SELECT FROM pg_stat_activity WHERE application_name = 'old one'
             AND datname = current_database() AND xact_start < clock_timestamp() - interval '1100 ms'";
        diesel::sql_query(old).execute(&mut age).unwrap() > 0
    });
    let mut told = Vec::new();
    let error = Migrator::new()
        .wait_at_most(Duration::from_millis(300))
        .report_to(|progress| told.push(progress.clone()))
        .migrate(&mut conn)
        .unwrap_err();
    assert!(error.to_string().contains("application old one, idle in transaction since"), "{error}");
    assert!(told.iter().any(|progress| matches!(progress, Progress::Waits { holders, .. }
        if holders.0[0].application.as_deref() == Some("old one"))));
    old.batch_execute("COMMIT").unwrap();
    migrate(&mut conn).unwrap();
    assert_shape(&mut conn);
}

#[test]
fn a_prepared_transaction_is_named() {
    let server = server_with("ALTER SYSTEM SET max_prepared_transactions = 2");
    let database = server.create_database().unwrap();
    let (mut conn, mut second) = (open(&database), open(&database));
    migrate(&mut conn).unwrap();
    for undone in ["DROP TRIGGER \"~api_keys_tell\" ON api_keys", "DROP INDEX ix_api_keys_denied"] {
        conn.batch_execute(undone).unwrap();
        conn.batch_execute("BEGIN; DELETE FROM api_keys; PREPARE TRANSACTION 'left behind'").unwrap();
        let mut told = Vec::new();
        let error = Migrator::new()
            .wait_at_most(Duration::from_millis(1500))
            .report_to(|progress| told.push(progress.clone()))
            .observe_through(&mut second)
            .migrate(&mut conn)
            .unwrap_err();
        assert!(matches!(error, Error::MigrationWaits { .. }), "{undone}: {error:?}");
        assert!(error.to_string().contains("prepared transaction left behind, user "), "{error}");
        assert!(
            told.iter().any(|progress| matches!(progress, Progress::Waits { holders, .. }
                if holders.0[0].prepared.as_deref() == Some("left behind"))),
            "{told:?}"
        );
        conn.batch_execute("ROLLBACK PREPARED 'left behind'").unwrap();
        migrate(&mut conn).unwrap();
    }
}

/// An index build does not wait for VACUUM of another table, which may take hours.
#[test]
fn a_vacuum_of_another_table_is_not_waited_for() {
    let (database, mut conn) = empty();
    conn.batch_execute("CREATE TABLE large AS SELECT n FROM generate_series(1, 100000) AS n").unwrap();
    let (mut vacuum, mut observer) = (open(&database), open(&database));
    vacuum.batch_execute("SET vacuum_cost_delay = '100ms'; SET vacuum_cost_limit = 1").unwrap();
    thread::scope(|scope| {
        let vacuumed = scope.spawn(|| vacuum.batch_execute("VACUUM large").unwrap_err());
        let pid = "SELECT pid::text AS line FROM pg_stat_activity WHERE datname = current_database()
             AND query = 'VACUUM large' AND xact_start < clock_timestamp() - interval '1200 ms'";
        eventually("it takes long", || !lines(&mut observer, pid).is_empty());
        let migrated = Migrator::new().wait_at_most(Duration::from_millis(300)).migrate(&mut conn);
        let running = lines(&mut observer, pid);
        assert_eq!(running.len(), 1, "it ended too early");
        observer.batch_execute(&format!("SELECT pg_cancel_backend({})", running[0])).unwrap();
        vacuumed.join().unwrap();
        assert_eq!(migrated.unwrap(), names());
    });
}

#[test]
fn an_observer_reports_what_a_build_waits_for_until_it_times_out() {
    let (database, mut conn) = empty();
    let (mut holder, mut observer, mut second) = (open(&database), open(&database), open(&database));
    let mut told = Vec::new();
    let error = thread::scope(|scope| {
        let migrator = scope.spawn(|| {
            Migrator::new()
                .wait_at_most(Duration::from_secs(2))
                .report_to(|progress| told.push(progress.clone()))
                .observe_through(&mut second)
                .migrate(&mut conn)
        });
        hold_up_a_build(&mut holder, &mut observer);
        migrator.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, Error::MigrationWaits { .. }), "{error:?}");
    assert!(told.iter().any(|progress| matches!(progress, Progress::Builds { .. })), "{told:?}");
    assert!(told.iter().any(|progress| matches!(progress, Progress::Waits { .. })), "{told:?}");
    holder.batch_execute("COMMIT").unwrap();
    migrate(&mut conn).unwrap();
    assert_shape(&mut conn);
}

#[test]
fn a_migration_waits_for_an_index_build_of_another_session() {
    let (database, mut conn) = empty();
    let (mut holder, mut by_hand) = (open(&database), open(&database));
    migrate(&mut conn).unwrap();
    conn.batch_execute(
        "DROP INDEX uq_api_keys_key_hash;
         DELETE FROM __diesel_schema_migrations WHERE version LIKE '%driver010'",
    )
    .unwrap();
    thread::scope(|scope| {
        holder.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class LIMIT 1").unwrap();
        let builder = scope.spawn(move || {
            diesel::sql_query("CREATE UNIQUE INDEX CONCURRENTLY uq_api_keys_key_hash ON api_keys (key_hash)")
                .execute(&mut by_hand)
                .unwrap();
        });
        wait_until_one_waits(&mut open(&database));
        let oid = "SELECT 'uq_api_keys_key_hash'::regclass::oid::text AS line";
        let building = lines(&mut open(&database), oid);
        let mut holder = Some(holder);
        let migrated = Migrator::new()
            .report_to(|progress| {
                let waits =
                    matches!(progress, Progress::Waits { step: Some(step), .. } if step.ends_with("unique"));
                if let Some(mut holder) = waits.then(|| holder.take()).flatten() {
                    holder.batch_execute("COMMIT").unwrap();
                }
            })
            .migrate(&mut conn);
        assert_eq!(migrated.unwrap().len(), 1);
        builder.join().unwrap();
        assert_eq!(lines(&mut conn, oid), building);
    });
    assert_shape(&mut conn);
}

#[test]
fn another_schema_with_the_same_tables_is_never_changed() {
    let (_database, mut conn) = empty();
    migrate(&mut conn).unwrap();
    // A staging schema in the same database: its tables are the same, and one of its indexes is invalid.
    conn.batch_execute("CREATE SCHEMA staging; SET search_path = staging").unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), names());
    conn.batch_execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_api_keys_key_hash'::regclass;
         DELETE FROM __diesel_schema_migrations WHERE version LIKE '%'",
    )
    .unwrap();
    let indexes = "SELECT indexrelid::text || ' ' || indisvalid AS line FROM pg_index
         WHERE indrelid IN ('public.api_keys'::regclass, 'public.proxy_calls'::regclass) ORDER BY 1";
    let production = lines(&mut conn, indexes);
    assert!(production.iter().all(|line| line.ends_with("true")));

    conn.batch_execute("SET search_path = public").unwrap();
    assert!(migrate(&mut conn).unwrap().is_empty());
    assert_eq!(lines(&mut conn, indexes), production);
}

#[test]
fn new_objects_are_created_in_the_schema_of_api_keys() {
    let Some((_database, mut conn)) = existing_service() else { return };
    conn.batch_execute("CREATE SCHEMA app; SET search_path = app, public").unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), names());
    let elsewhere = "SELECT relname::text AS line FROM pg_class WHERE relnamespace = 'app'::regnamespace";
    assert_eq!(lines(&mut conn, elsewhere), [""; 0]);
    conn.batch_execute("SET search_path = public").unwrap();
    assert!(migrate(&mut conn).unwrap().is_empty());
    assert_eq!(count(&mut conn, "api_key_events"), 0);
    assert_shape(&mut conn);
}

#[test]
fn migrations_of_the_application_stay_when_ours_are_reverted() {
    let (_database, mut conn) = empty();
    migrate(&mut conn).unwrap();
    conn.batch_execute(
        "INSERT INTO __diesel_schema_migrations (version) VALUES ('00000000000000'), ('20990101000000')",
    )
    .unwrap();
    let ours =
        "SELECT version AS line FROM __diesel_schema_migrations WHERE version LIKE '0000apikeysdriver%'
         AND version COLLATE \"C\" < '1'";
    assert_eq!(lines(&mut conn, ours).len(), names().len(), "they sort before the application's");
    let mut reverted = Migrator::new().revert(&mut conn).unwrap();
    reverted.reverse();
    assert_eq!(reverted, names());
    assert_eq!(catalog(&mut conn), [""; 0]);
    assert_eq!(count(&mut conn, "__diesel_schema_migrations"), 2);
    assert_eq!(migrate(&mut conn).unwrap(), names());
}

/// The partitions of the calls whose part of the usage index is missing, invalid or not attached.
fn partitions_without_usage_index(conn: &mut PgConnection) -> Vec<String> {
    lines(
        conn,
        "SELECT relid::text AS line FROM pg_partition_tree('proxy_calls')
         WHERE NOT EXISTS (
             SELECT FROM pg_partition_tree('ix_proxy_calls_key_usage') AS part
             JOIN pg_index ON indexrelid = part.relid
             WHERE indrelid = pg_partition_tree.relid AND indisvalid
         )",
    )
}

#[test]
fn partitioned_calls_get_the_index_on_current_and_later_partitions() {
    let Some((_database, mut conn)) = partitioned_service() else { return };
    // One partition already has the index, created by hand. Another has the invalid index of an interrupted build.
    conn.batch_execute(
        "CREATE INDEX by_hand ON calls_2025 (tenant_id, api_key_id, created_at) INCLUDE (cost_cents);
         CREATE INDEX ix_proxy_calls_key_usage_calls_later ON calls_later (tenant_id, api_key_id, created_at)
             INCLUDE (cost_cents);
         UPDATE pg_index SET indisvalid = false
         WHERE indexrelid = 'ix_proxy_calls_key_usage_calls_later'::regclass",
    )
    .unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), names());
    assert_eq!(partitions_without_usage_index(&mut conn), [""; 0]);
    let attached = "SELECT relid::text AS line FROM pg_partition_tree('ix_proxy_calls_key_usage')";
    assert!(lines(&mut conn, attached).contains(&"by_hand".into()));
    conn.batch_execute(
        "CREATE TABLE calls_2027 PARTITION OF proxy_calls FOR VALUES FROM ('2027-01-01Z') TO ('2028-01-01Z')",
    )
    .unwrap();
    assert_eq!(partitions_without_usage_index(&mut conn), [""; 0]);
    assert!(migrate(&mut conn).unwrap().is_empty());

    let nullable = "SELECT attrelid::regclass::text AS line FROM pg_attribute
         WHERE attname = 'created_at' AND NOT attnotnull
             AND attrelid IN (SELECT relid FROM pg_partition_tree('proxy_calls'))";
    assert_eq!(lines(&mut conn, nullable), [""; 0]);
    Migrator::new().revert(&mut conn).unwrap();
    assert_eq!(count(&mut conn, "pg_class WHERE relname LIKE 'ix_proxy_calls_key_usage%'"), 0);
    assert_eq!(migrate(&mut conn).unwrap(), names());
    assert_eq!(partitions_without_usage_index(&mut conn), [""; 0]);
}
