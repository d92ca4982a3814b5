//! The migrations in an empty database, and in the existing service's database with its rows and writers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use api_keys_driver::schema::api_keys;
use api_keys_driver::{
    ApiKeysFacadeDriver, Error, KeyStatus, KeysDriver, MIGRATIONS, Migrator, Page, Progress, migrate,
};
use diesel::connection::SimpleConnection;
use diesel::migration::MigrationSource;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_migrations::MigrationHarness;

use crate::support::{CallRow, KeyRow, OTHER, TENANT, at, existing_service, key, tenant};

pub(crate) fn empty() -> (throwaway_postgres::Database, PgConnection) {
    let database = throwaway_postgres::empty().unwrap();
    let conn = database.connect().unwrap();
    (database, conn)
}

pub(crate) fn names() -> Vec<String> {
    let mut names: Vec<_> = MigrationSource::<Pg>::migrations(&MIGRATIONS)
        .unwrap()
        .iter()
        .map(|migration| migration.name().to_string())
        .collect();
    names.sort();
    names
}

/// The cause of an error, in the server's words.
pub(crate) fn cause(error: &Error) -> String {
    assert!(matches!(error, Error::Migration(_) | Error::NotReady(_)), "{error:?}");
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

pub(crate) fn lines(conn: &mut PgConnection, sql: &str) -> Vec<String> {
    let lines: Vec<Line> = diesel::sql_query(sql).load(conn).unwrap();
    lines.into_iter().map(|row| row.line).collect()
}

/// Columns, constraints and indexes of the two tables, one per line.
pub(crate) fn catalog(conn: &mut PgConnection) -> Vec<String> {
    lines(
        conn,
        "SELECT format('%s.%s %s not null: %s', attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull) AS line
           FROM pg_attribute WHERE attrelid IN (to_regclass('api_keys'), to_regclass('proxy_calls')) AND attnum > 0 AND NOT attisdropped
         UNION ALL
         SELECT format('%s: %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint
          WHERE conrelid IN (to_regclass('api_keys'), to_regclass('proxy_calls')) AND contype <> 'n'
         UNION ALL
         SELECT format('%s valid: %s', pg_get_indexdef(indexrelid), indisvalid) FROM pg_index
          WHERE indrelid IN (to_regclass('api_keys'), to_regclass('proxy_calls'))
         ORDER BY 1",
    )
}

/// The whole schema, one object per line. Two databases are compared by it.
pub(crate) fn dump(conn: &mut PgConnection) -> Vec<String> {
    lines(
        conn,
        "WITH relations AS (
             SELECT oid, relname, relkind, relacl FROM pg_class
             WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'S')
         )
         SELECT format('%s %s %s %s', relkind, relname, relacl, obj_description(oid, 'pg_class')) AS line FROM relations
         UNION ALL
         SELECT format('%s.%s %s not null: %s identity: %s default: %s', relname, attname,
             format_type(atttypid, atttypmod), attnotnull, attidentity, pg_get_expr(adbin, adrelid))
         FROM relations JOIN pg_attribute ON attrelid = relations.oid AND attnum > 0 AND NOT attisdropped
         LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
         UNION ALL
         SELECT format('%s %s: %s validated: %s', relname, conname, pg_get_constraintdef(pg_constraint.oid), convalidated)
         FROM relations JOIN pg_constraint ON conrelid = relations.oid AND contype <> 'n'
         UNION ALL
         SELECT format('%s valid: %s ready: %s attached to: %s', pg_get_indexdef(indexrelid), indisvalid, indisready,
             (SELECT inhparent::regclass FROM pg_inherits WHERE inhrelid = indexrelid))
         FROM relations JOIN pg_index ON indrelid = relations.oid
         UNION ALL
         SELECT format('%s enabled: %s', pg_get_triggerdef(pg_trigger.oid), tgenabled)
         FROM relations JOIN pg_trigger ON tgrelid = relations.oid AND NOT tgisinternal
         UNION ALL
         SELECT pg_get_functiondef(oid) || proacl::text FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
         UNION ALL
         SELECT version FROM __diesel_schema_migrations
         ORDER BY 1",
    )
}

pub(crate) fn count(conn: &mut PgConnection, table: &str) -> i64 {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    diesel::sql_query(format!("SELECT count(*) FROM {table}")).get_result::<Count>(conn).unwrap().count
}

pub(crate) fn assert_shape(conn: &mut PgConnection) {
    let catalog = catalog(conn);
    for line in [
        "api_keys.key_prefix character varying(12) not null: t",
        "api_keys.created_at timestamp with time zone not null: t",
        "proxy_calls.created_at timestamp with time zone not null: t",
        "CREATE UNIQUE INDEX uq_api_keys_key_hash ON public.api_keys USING btree (key_hash) valid: t",
        "CREATE INDEX ix_api_keys_tenant_newest_first ON public.api_keys USING btree (tenant_id, created_at DESC, id DESC) valid: t",
        "CREATE INDEX ix_proxy_calls_key_usage ON public.proxy_calls USING btree (tenant_id, api_key_id, created_at) INCLUDE (cost_cents) valid: t",
    ] {
        assert!(catalog.iter().any(|found| found == line), "{line} is not in {catalog:#?}");
    }
}

/// Writes as the existing service does: by column name, and only the columns that it knows.
pub(crate) fn write_like_the_service(conn: &mut PgConnection, id: &str) {
    conn.batch_execute(&format!(
        "INSERT INTO api_keys (id, tenant_id, user_id, name, key_prefix, key_hash, permissions_json, status,
                               total_requests, created_at, is_synthetic, is_frozen)
         VALUES ('{id}', '{TENANT}', NULL, 'Key {id}', 'sk-live-a', '{id}', '[\"chat\"]', 'active', 0, now(), false, false);
         UPDATE api_keys SET total_requests = total_requests + 1, last_used_at = now() WHERE id = '{id}';
         UPDATE api_keys SET is_frozen = true, frozen_at = now(), frozen_by = 'ops', freeze_reason = 'leak' WHERE id = '{id}';
         UPDATE api_keys SET status = 'revoked', revoked_at = now(), revoked_reason = 'left' WHERE id = '{id}';
         INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents,
                                  was_blocked, replay_eligible, created_at)
         VALUES ('call-{id}', '{TENANT}', '{id}', '/v1/chat/completions', 'small', 'h', '{{}}', 0.1234, false, false, now());"
    ))
    .unwrap();
}

#[test]
fn an_empty_database_gets_the_schema_and_no_redundant_index() {
    let (_database, mut conn) = empty();
    assert_eq!(migrate(&mut conn).unwrap(), names());
    assert_shape(&mut conn);
    let catalog = catalog(&mut conn);
    for redundant in ["ix_api_keys_tenant_id ", "ix_api_keys_key_hash ", "ix_proxy_calls_tenant_id "] {
        assert!(!catalog.iter().any(|line| line.contains(redundant)), "{redundant}");
    }
    assert!(migrate(&mut conn).unwrap().is_empty());

    write_like_the_service(&mut conn, "after");
    let seen = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("after")).unwrap().unwrap();
    assert!(seen.is_frozen);
}

#[test]
fn the_existing_database_gets_the_schema_and_loses_nothing() {
    let Some((_database, mut conn)) = existing_service() else { return };
    for id in ["one", "two", "three"] {
        write_like_the_service(&mut conn, id);
    }
    conn.batch_execute(&format!("INSERT INTO worker_runs VALUES ('run', '{TENANT}', 'one')")).unwrap();
    let rows = "SELECT (to_jsonb(k) - 'revision')::text AS line FROM api_keys AS k UNION ALL SELECT row(c.*)::text FROM proxy_calls AS c ORDER BY 1";
    let rows_before = lines(&mut conn, rows);
    let catalog_before: BTreeSet<_> = catalog(&mut conn).into_iter().collect();

    assert_eq!(migrate(&mut conn).unwrap(), names());

    assert_shape(&mut conn);
    assert_eq!(lines(&mut conn, rows), rows_before);
    let catalog_after: BTreeSet<_> = catalog(&mut conn).into_iter().collect();
    let changed: Vec<_> = catalog_before.difference(&catalog_after).collect();
    assert_eq!(
        changed,
        [
            "api_keys.created_at timestamp with time zone not null: f",
            "api_keys.key_prefix character varying(10) not null: t",
            "proxy_calls.created_at timestamp with time zone not null: f",
        ]
    );
    assert_eq!(count(&mut conn, "worker_runs WHERE api_key_id = 'one'"), 1);
}

#[test]
fn the_service_writes_during_and_after_a_migration() {
    let Some((database, mut conn)) = existing_service() else { return };
    for id in 0..50 {
        write_like_the_service(&mut conn, &format!("before-{id}"));
    }
    let (started, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut conn = database.connect().unwrap();
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                write_like_the_service(&mut conn, &format!("during-{written}"));
                written += 1;
                started.store(true, Ordering::Relaxed);
            }
            written
        });
        while !started.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let migrated = migrate(&mut conn);
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().unwrap();
        migrated.unwrap();
        written
    });
    assert_shape(&mut conn);
    write_like_the_service(&mut conn, "after");
    assert_eq!(KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap(), 51 + written);

    let twelve = "sk-live-abcd";
    conn.batch_execute(&format!("UPDATE api_keys SET key_prefix = '{twelve}' WHERE id = 'after'")).unwrap();
    let page =
        ApiKeysFacadeDriver::new(&mut conn).fetch_api_keys(&tenant(), None, Page { limit: 1, offset: 0 });
    assert_eq!(page.unwrap()[0].key_prefix, twelve);

    let foreign = conn.batch_execute("INSERT INTO worker_runs VALUES ('run', 'nobody', NULL)");
    assert!(foreign.is_err(), "the foreign keys of the existing database are gone");
    conn.batch_execute(&format!("DELETE FROM tenants WHERE id = '{TENANT}'")).unwrap();
    assert_eq!(KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap(), 0, "deleting a tenant cascades");
}

#[test]
fn a_wider_key_prefix_is_not_changed() {
    let Some((_database, mut conn)) = existing_service() else { return };
    conn.batch_execute("ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(20)").unwrap();
    migrate(&mut conn).unwrap();
    let line = "api_keys.key_prefix character varying(20) not null: t";
    assert!(catalog(&mut conn).iter().any(|found| found == line));
}

#[test]
fn rows_that_a_step_would_refuse_are_reported_and_nothing_is_changed() {
    let cases = [
        (
            "UPDATE api_keys SET key_hash = 'c0ffee' WHERE id IN ('one', 'three')",
            "api_keys has 2 rows that share a key_hash with another (first ids: one, three)",
            "UPDATE api_keys SET key_hash = id",
        ),
        (
            "UPDATE api_keys SET created_at = NULL WHERE id = 'two'",
            "api_keys has 1 row(s) with a NULL created_at (first ids: two)",
            "UPDATE api_keys SET created_at = now() WHERE created_at IS NULL",
        ),
        (
            "UPDATE proxy_calls SET created_at = NULL",
            "proxy_calls has 3 row(s) with a NULL created_at (first ids: call-one, call-three, call-two)",
            "UPDATE proxy_calls SET created_at = now() WHERE created_at IS NULL",
        ),
    ];
    for (spoil, complaint, fix) in cases {
        let Some((_database, mut conn)) = existing_service() else { return };
        for id in ["one", "two", "three"] {
            write_like_the_service(&mut conn, id);
        }
        conn.batch_execute(spoil).unwrap();
        let before = catalog(&mut conn);

        let error = migrate(&mut conn).unwrap_err();
        let cause = cause(&error);
        assert!(cause.contains(complaint), "{cause}");
        assert!(!cause.contains("c0ffee"), "a hash in {cause}");
        assert_eq!(catalog(&mut conn), before);
        assert_eq!(count(&mut conn, "api_keys"), 3);

        conn.batch_execute(fix).unwrap();
        assert_eq!(migrate(&mut conn).unwrap(), names());
        assert_shape(&mut conn);
    }
}

#[test]
fn an_index_that_an_interrupted_build_left_is_removed_and_built_again() {
    let Some((_database, mut conn)) = existing_service() else { return };
    for id in ["one", "two"] {
        KeyRow { id, key_hash: Some("same"), key_prefix: "sk", ..KeyRow::default() }.insert(&mut conn);
    }
    let invalid =
        "CREATE UNIQUE INDEX uq_api_keys_key_hash ON public.api_keys USING btree (key_hash) valid: f";
    let build = "CREATE UNIQUE INDEX CONCURRENTLY uq_api_keys_key_hash ON api_keys (key_hash)";
    diesel::sql_query(build).execute(&mut conn).unwrap_err();
    assert!(catalog(&mut conn).iter().any(|line| line == invalid));

    conn.batch_execute("UPDATE api_keys SET key_hash = id").unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), names());
    assert_shape(&mut conn);
}

#[test]
fn duplicates_that_are_inserted_after_the_check_are_named_too() {
    let Some((database, mut conn)) = existing_service() else { return };
    KeyRow { id: "one", key_hash: Some("c0ffee"), key_prefix: "sk", ..KeyRow::default() }.insert(&mut conn);
    let mut service = database.connect().unwrap();
    let error = Migrator::new()
        .report_to(|progress| {
            if let Progress::Step { name, .. } = progress
                && name.ends_with("key_hash_unique")
            {
                KeyRow { id: "two", key_hash: Some("c0ffee"), ..KeyRow::default() }.insert(&mut service);
            }
        })
        .migrate(&mut conn)
        .unwrap_err();
    let cause = cause(&error);
    assert!(cause.contains("share a key_hash with another (first ids: one, two)"), "{cause}");
    assert!(!cause.contains("c0ffee"), "a hash in {cause}");
    assert!(!catalog(&mut conn).iter().any(|line| line.contains("uq_api_keys_key_hash")));

    conn.batch_execute("UPDATE api_keys SET key_hash = id").unwrap();
    migrate(&mut conn).unwrap();
    assert_shape(&mut conn);
}

#[test]
fn sixteen_migrators_at_once_apply_each_migration_once() {
    let (database, mut conn) = empty();
    let applied: Vec<Vec<String>> = thread::scope(|scope| {
        let migrators: Vec<_> =
            (0..16).map(|_| scope.spawn(|| migrate(&mut database.connect().unwrap()).unwrap())).collect();
        migrators.into_iter().map(|migrator| migrator.join().unwrap()).collect()
    });
    let mut applied: Vec<_> = applied.into_iter().flatten().collect();
    applied.sort();
    assert_eq!(applied, names());
    assert_shape(&mut conn);
}

#[test]
fn a_step_that_cannot_lock_its_table_names_the_holder_of_the_lock() {
    let Some((database, mut conn)) = existing_service() else { return };
    let mut reader = database.connect().unwrap();
    reader.batch_execute("SET application_name = 'forgotten'; BEGIN; SELECT FROM api_keys").unwrap();

    let mut told = Vec::new();
    let error = Migrator::new()
        .wait_at_most(Duration::from_secs(2))
        .report_to(|progress| told.push(progress.clone()))
        .migrate(&mut conn)
        .unwrap_err();
    let Error::MigrationWaits { step, holders } = &error else { panic!("{error:?}") };
    assert!(step.ends_with("widen_key_prefix"), "{step}");
    assert_eq!(holders.0.len(), 1, "{holders}");
    assert_eq!(holders.0[0].application.as_deref(), Some("forgotten"));
    assert_eq!(holders.0[0].state.as_deref(), Some("idle in transaction"));
    assert!(holders.0[0].since.is_some());
    assert!(error.to_string().contains("application forgotten"), "{error}");
    assert!(
        told.iter().any(|progress| matches!(progress, Progress::Waits { step: Some(_), .. })),
        "{told:?}"
    );

    reader.batch_execute("COMMIT").unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), names()[2..]);
    assert_shape(&mut conn);
}

#[test]
fn timeouts_of_the_session_do_not_end_an_index_build_and_are_restored() {
    let (database, mut conn) = empty();
    conn.batch_execute("SET statement_timeout = '300ms'; SET lock_timeout = '200ms'").unwrap();
    // A concurrent build waits for the transactions that began before it.
    let mut older = database.connect().unwrap();
    older.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class").unwrap();

    let mut conn = thread::scope(|scope| {
        let migrator = scope.spawn(move || {
            assert_eq!(migrate(&mut conn).unwrap(), names());
            conn
        });
        let waits =
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query ~ 'CONCURRENTLY'
                     AND wait_event_type = 'Lock' AND query_start < clock_timestamp() - interval '500 ms'";
        let mut observer = database.connect().unwrap();
        while diesel::sql_query(waits).execute(&mut observer).unwrap() == 0 {
            assert!(!migrator.is_finished(), "nothing waited for the older transaction");
            thread::sleep(Duration::from_millis(10));
        }
        older.batch_execute("COMMIT").unwrap();
        migrator.join().unwrap()
    });
    let after = lines(
        &mut conn,
        "SELECT current_setting('statement_timeout') || ' ' || current_setting('lock_timeout') AS line",
    );
    assert_eq!(after, ["300ms 200ms"]);
}

#[test]
fn reverting_drops_only_empty_tables_that_the_crate_created() {
    let (_database, mut conn) = empty();
    migrate(&mut conn).unwrap();
    conn.revert_all_migrations(MIGRATIONS).unwrap();
    assert!(catalog(&mut conn).is_empty());

    migrate(&mut conn).unwrap();
    KeyRow::default().insert(&mut conn);
    CallRow::default().insert(&mut conn);
    conn.revert_all_migrations(MIGRATIONS).unwrap();
    assert_eq!((count(&mut conn, "api_keys"), count(&mut conn, "proxy_calls")), (1, 1));
    assert_eq!(migrate(&mut conn).unwrap(), names());
    assert_shape(&mut conn);
}

#[test]
fn reverting_restores_the_existing_schema_and_keeps_every_row() {
    let Some((_database, mut conn)) = existing_service() else { return };
    let mut before: BTreeSet<_> = catalog(&mut conn).into_iter().collect();
    migrate(&mut conn).unwrap();
    write_like_the_service(&mut conn, "one");
    conn.revert_all_migrations(MIGRATIONS).unwrap();

    // Only this change stays: see the down.sql of the migration.
    before.remove("api_keys.key_prefix character varying(10) not null: t");
    before.insert("api_keys.key_prefix character varying(12) not null: t".into());
    assert_eq!(catalog(&mut conn).into_iter().collect::<BTreeSet<_>>(), before);
    assert_eq!(count(&mut conn, "api_keys"), 1);

    conn.batch_execute("TRUNCATE api_keys, proxy_calls, worker_runs").unwrap();
    migrate(&mut conn).unwrap();
    conn.revert_all_migrations(MIGRATIONS).unwrap();
    assert!(!catalog(&mut conn).is_empty(), "a table that the crate did not create is gone");
}

#[test]
fn both_databases_give_the_same_answers() {
    let Some((_existing, mut existing)) = existing_service() else { return };
    migrate(&mut existing).unwrap();
    let (_empty, mut empty) = empty();
    migrate(&mut empty).unwrap();
    let answers = [&mut existing, &mut empty].map(|conn| {
        KeyRow { id: "plain", ..KeyRow::default() }.insert(conn);
        KeyRow { id: "synthetic", is_synthetic: true, ..KeyRow::default() }.insert(conn);
        KeyRow { id: "foreign", tenant_id: OTHER, ..KeyRow::default() }.insert(conn);
        CallRow { api_key_id: Some("plain"), ..CallRow::default() }.insert(conn);
        let mut keys = KeysDriver::new(conn);
        (
            keys.fetch_keys(&tenant(), Page::default()).unwrap(),
            keys.fetch_key_usage(&tenant(), &key("plain"), at("2026-01-01T00:00:00Z")).unwrap(),
            ApiKeysFacadeDriver::new(conn)
                .fetch_api_keys(&tenant(), Some(&KeyStatus::Active), Page::default())
                .unwrap(),
        )
    });
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].0.len(), 2);
    assert_eq!(api_keys::table.count().get_result::<i64>(&mut empty).unwrap(), 3);
}
