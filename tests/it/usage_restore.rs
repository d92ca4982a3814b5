//! Usage after a dump was restored into a server whose transaction ids are lower, and after a restore of the data alone: by
//! the real `pg_dump` and `pg_restore`.

use std::process::{Command, Stdio};

use api_keys_driver::{KeyUsageSnapshot, KeysDriver, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use throwaway_postgres::{Database, PrivateServer};

use crate::support::usage::{assert_exact, call, changes, fill, plain, roll_up};
use crate::support::{at, eventually, tenant};
use crate::usage_replica::documented;

/// Copies a database with `pg_dump` and `pg_restore`. Returns `false` if they are not next to the server's programs.
fn restore(from: &Database, to: &Database, dump_options: &[&str], options: &[&str]) -> bool {
    let programs = throwaway_postgres::programs().unwrap();
    let (dump, restore) = (programs.join("pg_dump"), programs.join("pg_restore"));
    if !dump.exists() || !restore.exists() {
        eprintln!("skipped: there is no pg_dump or pg_restore beside the server's programs");
        return false;
    }
    let mut dumping = Command::new(dump)
        .args(["--format=custom", "--no-owner"])
        .args(dump_options)
        .arg(from.url())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let restored = Command::new(restore)
        .args(["--exit-on-error", "--no-owner"])
        .args(options)
        .args(["--dbname", to.url()])
        .stdin(dumping.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(dumping.wait().unwrap().success());
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    true
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

fn id(conn: &mut PgConnection, sql: &str) -> i64 {
    diesel::sql_query(sql).get_result::<Id>(conn).unwrap().id
}

const NEXT: &str = "SELECT pg_current_xact_id()::text::bigint AS id";

/// The usage of the tenant since the earliest time, also of deleted calls.
fn of_all_time(conn: &mut PgConnection) -> KeyUsageSnapshot {
    KeysDriver::new(conn).fetch_tenant_usage(&tenant(), at("2000-01-01T00:00:00Z")).unwrap()
}

/// A database of a server with high transaction ids: some calls are counted, a change waits, and some calls are deleted
/// while their usage is kept. A dump may be made after any of the three steps of a roll-up.
fn busy(steps: usize) -> (PrivateServer, Database, PgConnection) {
    let server = PrivateServer::start_new().unwrap();
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    let mut conn = database.connect().unwrap();
    conn.batch_execute(
        "DO $$ BEGIN FOR n IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
    )
    .unwrap();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-02T12:20:00Z");
    assert!(KeysDriver::new(&mut conn).delete_calls_before(at("2026-03-01T12:15:00Z"), 100).unwrap() > 0);
    call(&mut conn, "late", "2026-03-02T12:16:00Z", "1");
    for _ in 0..steps {
        KeysDriver::new(&mut conn).roll_up_usage(at("2026-03-02T18:00:00Z"), 100).unwrap().unwrap();
    }
    call(&mut conn, "later", "2026-03-02T12:17:00Z", "1");
    (server, database, conn)
}

#[test]
fn usage_is_exact_after_a_restore_into_a_server_with_lower_ids() {
    let younger = PrivateServer::start_new().unwrap();
    for steps in 0..4 {
        let (_server, source, mut old) = busy(steps);
        let copy = younger.create_database().unwrap();
        if !restore(&source, &copy, &[], &[]) {
            return;
        }
        let mut conn = copy.connect().unwrap();
        let merged_below = id(&mut conn, "SELECT max(merged_below) AS id FROM usage_progress");
        assert!(id(&mut conn, NEXT) + 10_000 < merged_below, "the ids of the other server are not higher");

        assert_exact(&mut conn);
        assert_eq!(of_all_time(&mut conn), of_all_time(&mut old), "{steps} steps");
        let waiting = changes(&mut conn);
        assert!(waiting > 0);
        call(&mut conn, "new and late", "2026-03-02T12:18:00Z", "1");
        conn.batch_execute(
            "UPDATE proxy_calls SET cost_cents = 7 WHERE id = 'late'; DELETE FROM proxy_calls WHERE id = 'c860'",
        )
        .unwrap();
        assert!(changes(&mut conn) > waiting, "the triggers record");
        assert_exact(&mut conn);
        let before = of_all_time(&mut conn);
        roll_up(&mut conn, "2026-03-02T18:00:00Z");
        assert_eq!(changes(&mut conn), 0, "{steps} steps");
        assert_exact(&mut conn);
        roll_up(&mut conn, "2026-03-03T00:00:00Z");
        assert_exact(&mut conn);
        assert_eq!(of_all_time(&mut conn), before, "{steps} steps");
    }
}

const DATA: &[&str] = &["--data-only", "--exclude-table=*__diesel_schema_migrations"];

/// A migrated database, in which usage was rolled up already.
fn rolled_up(server: &PrivateServer) -> (Database, PgConnection) {
    let copy = server.create_database().unwrap().prepare(migrate).unwrap();
    let mut conn = copy.connect().unwrap();
    roll_up(&mut conn, "2026-03-02T18:00:00Z");
    (copy, conn)
}

#[test]
fn usage_is_the_same_after_a_restore_of_the_data_alone() {
    let younger = PrivateServer::start_new().unwrap();
    for steps in [0, 2] {
        let (_server, source, mut old) = busy(steps);
        for options in [&[][..], &["--disable-triggers"]] {
            let (copy, mut conn) = rolled_up(&younger);
            conn.batch_execute(documented("## Restore the data alone\n", 0)).unwrap();
            if !restore(&source, &copy, DATA, options) {
                return;
            }
            let before = of_all_time(&mut old);
            assert_exact(&mut conn);
            assert_eq!(of_all_time(&mut conn), before, "{steps} steps, {options:?}");
            call(&mut conn, "new and late", "2026-03-02T12:18:00Z", "1");
            assert_exact(&mut conn);
            roll_up(&mut conn, "2026-03-03T00:00:00Z");
            assert_exact(&mut conn);
            assert_eq!(changes(&mut conn), 0);
            assert_eq!(of_all_time(&mut conn).request_count, before.request_count + 1);
        }
    }
}

#[test]
fn restored_calls_without_their_usage_are_counted_by_the_triggers_or_by_a_recount() {
    let younger = PrivateServer::start_new().unwrap();
    let (_server, source, _old) = busy(3);
    for (options, is_counted) in [(&[][..], true), (&["--disable-triggers"], false)] {
        let (copy, mut conn) = rolled_up(&younger);
        let tables = ["--data-only", "--table=proxy_calls", "--table=api_keys"];
        if !restore(&source, &copy, &tables, options) {
            return;
        }
        let ever = at("2000-01-01T00:00:00Z")..at("2099-01-01T00:00:00Z");
        let calls = plain(&mut conn, "true", &ever);
        assert!(calls.request_count > 1000);
        assert_eq!(of_all_time(&mut conn) == calls, is_counted, "{options:?}");
        if !is_counted {
            let mut from = ever.start;
            eventually("all is counted again", || {
                let step = KeysDriver::new(&mut conn).recount_usage(from).unwrap().expect("no other worker");
                from = step.recounted_to;
                !step.is_behind
            });
        }
        assert_exact(&mut conn);
        assert_eq!(of_all_time(&mut conn), calls);
        roll_up(&mut conn, "2026-03-03T00:00:00Z");
        assert_exact(&mut conn);
        assert_eq!(of_all_time(&mut conn), calls);
    }
}
