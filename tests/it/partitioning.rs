//! Runs the SQL of `docs/partitioning.md` while a service writes, before and after the first migration; and
//! `pg_partman`.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;

use api_keys_driver::{KeysDriver, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::migrations::{count, lines};
use crate::support::{KeyRow, TENANT, at, eventually, existing_service, key, tenant};

/// The SQL of the document, with times in the future.
fn blocks(conn: &mut PgConnection) -> Vec<String> {
    let ahead = |months: u32, conn: &mut PgConnection| {
        let sql = format!(
            "SELECT to_char(date_trunc('month', now()) + interval '{months} months', 'YYYY-MM-DD\"Z\"') AS line"
        );
        lines(conn, &sql).remove(0)
    };
    let (first, second) = (ahead(2, conn), ahead(3, conn));
    include_str!("../../docs/partitioning.md")
        .split("```sql\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        // Through a word, because the times of the document may be those of today.
        .map(|sql| {
            sql.replace("2027-01-01Z", "FIRST").replace("2027-02-01Z", &second).replace("FIRST", &first)
        })
        .collect()
}

/// Runs a block, and repeats it after a lock timeout.
fn run(conn: &mut PgConnection, sql: &str) {
    eventually("the lock is free", || match conn.batch_execute(sql) {
        Ok(()) => true,
        Err(error) => {
            assert!(error.to_string().contains("lock timeout"), "{error}: {sql}");
            false
        }
    });
}

#[test]
fn calls_are_partitioned_while_the_service_writes_and_no_call_is_lost() {
    for is_migrated in [false, true] {
        let Some((database, mut conn)) = existing_service() else { return };
        KeyRow { id: "one", key_prefix: "sk", ..KeyRow::default() }.insert(&mut conn);
        if is_migrated {
            migrate(&mut conn).unwrap();
        }
        conn.batch_execute("GRANT SELECT ON proxy_calls TO pg_monitor; SET client_min_messages = warning")
            .unwrap();
        let (written, stop) = (AtomicI64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|writer| {
                    let mut conn = database.connect().unwrap();
                    let (written, stop) = (&written, &stop);
                    scope.spawn(move || {
                        let mut index = 0;
                        while !stop.load(Ordering::Relaxed) {
                            conn.batch_execute(&format!(
                                "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash,
                                     request_json, cost_cents)
                                 VALUES ('{writer}-{index}', '{TENANT}', 'one', '/', 'm', 'h', '{{}}', 0.5)"
                            ))
                            .unwrap();
                            index += 1;
                            written.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            eventually("some calls are written", || written.load(Ordering::Relaxed) > 100);
            for block in blocks(&mut conn) {
                run(&mut conn, &block);
            }
            let then = written.load(Ordering::Relaxed);
            eventually("more calls are written", || written.load(Ordering::Relaxed) > then + 100);
            migrate(&mut conn).unwrap();
            stop.store(true, Ordering::Relaxed);
            for writer in writers {
                writer.join().unwrap();
            }
        });
        let written = written.load(Ordering::Relaxed);
        assert_eq!(count(&mut conn, "proxy_calls"), written);
        let report = check(&mut conn).unwrap();
        assert!(report.is_clean(), "{report}");
        let usage = KeysDriver::new(&mut conn)
            .fetch_key_usage(&tenant(), &key("one"), at("2026-01-01T00:00:00Z"))
            .unwrap();
        assert_eq!(usage.request_count, written);
        let unattached = "SELECT relname::text AS line FROM pg_class WHERE relkind = 'I' AND NOT EXISTS (
             SELECT FROM pg_index WHERE indexrelid = pg_class.oid AND indisvalid)";
        assert_eq!(lines(&mut conn, unattached), [""; 0]);
        let grants = "SELECT relacl::text AS line FROM pg_class WHERE oid = 'proxy_calls'::regclass";
        assert!(lines(&mut conn, grants)[0].contains("pg_monitor=r"));
    }
}

/// An empty partitioned table that `pg_partman` maintains. `None` if it is not installed.
fn by_partman(conn: &mut PgConnection) -> Option<()> {
    let available = "SELECT default_version AS line FROM pg_available_extensions WHERE name = 'pg_partman'";
    let Some(version) = lines(conn, available).pop() else {
        eprintln!("skipped: pg_partman is not installed");
        return None;
    };
    let kind = if version.starts_with('4') { "'native', 'monthly'" } else { "'1 month'" };
    conn.batch_execute(&format!(
        "ALTER TABLE proxy_calls RENAME TO plain;
         CREATE TABLE proxy_calls (LIKE plain INCLUDING DEFAULTS, PRIMARY KEY (id, created_at))
             PARTITION BY RANGE (created_at);
         DROP TABLE plain; SET client_min_messages = warning;
         CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman;
         SELECT partman.create_parent('public.proxy_calls', 'created_at', {kind}, p_premake := 1)"
    ))
    .unwrap();
    Some(())
}

#[test]
fn partitions_created_by_pg_partman_have_the_index_and_the_triggers() {
    for is_migrated in [false, true] {
        let Some((_database, mut conn)) = existing_service() else { return };
        if is_migrated {
            migrate(&mut conn).unwrap();
            conn.batch_execute("DROP TABLE proxy_calls CASCADE").unwrap();
            let schema = include_str!("../../migrations/0000-api-keys-driver-002_create_proxy_calls/up.sql");
            conn.batch_execute(schema).unwrap();
        }
        if by_partman(&mut conn).is_none() {
            return;
        }
        migrate(&mut conn).unwrap();
        let leaves = "SELECT relid::text AS line FROM pg_partition_tree('proxy_calls') WHERE isleaf";
        let before = lines(&mut conn, leaves).len();
        KeyRow { id: "one", key_prefix: "sk", ..KeyRow::default() }.insert(&mut conn);
        let call = |months: u32| {
            format!(
                "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json,
                     cost_cents, created_at)
                 VALUES ('{months}', '{TENANT}', 'one', '/', 'm', 'h', '{{}}', 0.5, now() + {months} * interval '1 month')"
            )
        };
        // `pg_partman` creates partitions ahead of the newest row.
        conn.batch_execute(&call(0)).unwrap();
        conn.batch_execute(
            "UPDATE partman.part_config SET premake = 5; SELECT partman.run_maintenance('public.proxy_calls')",
        )
        .unwrap();
        assert_eq!(lines(&mut conn, leaves).len(), before + 4);
        let bare = format!(
            "{leaves} AND NOT (
                 EXISTS (SELECT FROM pg_partition_tree('ix_proxy_calls_key_usage') AS part
                         JOIN pg_index ON indexrelid = part.relid
                         WHERE indrelid = pg_partition_tree.relid AND indisvalid)
                 AND EXISTS (SELECT FROM pg_trigger
                         WHERE tgrelid = pg_partition_tree.relid AND tgname = 'proxy_calls_tell_usage')
             )"
        );
        assert_eq!(lines(&mut conn, &bare), [""; 0]);
        let report = check(&mut conn).unwrap();
        assert!(report.is_clean(), "{report}");

        for months in 1..5 {
            conn.batch_execute(&call(months)).unwrap();
        }
        let usage = KeysDriver::new(&mut conn)
            .fetch_key_usage(&tenant(), &key("one"), at("2026-01-01T00:00:00Z"))
            .unwrap();
        assert_eq!(usage.request_count, 5);
    }
}
