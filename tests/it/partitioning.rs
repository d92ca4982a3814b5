//! The way of `docs/partitioning.md`, with writers on: before the first migration, and after it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;

use api_keys_driver::{KeysDriver, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::migrations::{count, lines};
use crate::support::{KeyRow, TENANT, at, eventually, existing_service, key, tenant};

/// The SQL of the document, with moments that are ahead of the clock.
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
        .map(|sql| sql.replace("2027-01-01Z", &first).replace("2027-02-01Z", &second))
        .collect()
}

/// Runs a block, again while it gives up waiting for a lock.
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
                        let mut nth = 0;
                        while !stop.load(Ordering::Relaxed) {
                            conn.batch_execute(&format!(
                                "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash,
                                     request_json, cost_cents)
                                 VALUES ('{writer}-{nth}', '{TENANT}', 'one', '/', 'm', 'h', '{{}}', 0.5)"
                            ))
                            .unwrap();
                            nth += 1;
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
