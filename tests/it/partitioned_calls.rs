//! Every method with partitioned calls: it returns the same as with a plain table, and reads only the partitions of its
//! time range.

use std::sync::OnceLock;
use std::thread;

use api_keys_driver::{KeysDriver, Result, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::every_method::{Input, METHODS, comparable};
use crate::support::plans::explain;
use crate::support::prepared::replanned;
use crate::support::{
    CallRow, KeyRow, OTHER, TENANT, at, decimal, eventually, existing_service_apart, key, partitioned_service,
};

/// Answers that contain the current time or a transaction id.
pub(crate) fn differs_from_call_to_call(method: &str) -> bool {
    ["_events", "_history", "denied", "insert_key"].iter().any(|part| method.contains(part))
}

#[test]
fn every_method_returns_the_same_with_partitioned_calls() {
    let mut answers: Vec<Vec<Result<String>>> = Vec::new();
    for create in [existing_service_apart, partitioned_service] {
        let Some((_database, mut conn)) = create() else { return };
        migrate(&mut conn).unwrap();
        KeyRow::default().insert(&mut conn);
        KeyRow { id: "foreign", tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
        let times =
            ["2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z", "2026-01-16T00:00:00Z", "2026-04-01T00:00:00Z"];
        for (id, time) in ["a", "b", "c", "d"].into_iter().zip(times) {
            let cost = Some(decimal("0.5"));
            CallRow { id, cost_cents: cost, created_at: at(time), ..CallRow::default() }.insert(&mut conn);
        }
        let call = |method: &crate::every_method::Method| {
            let mut answer = None;
            conn.test_transaction(|conn| {
                answer = Some((method.call)(conn, &Input::default()));
                Ok::<_, std::convert::Infallible>(())
            });
            answer.unwrap()
        };
        answers.push(METHODS.iter().map(call).collect());
    }
    for ((method, plain), partitioned) in METHODS.iter().zip(&answers[0]).zip(&answers[1]) {
        let [plain, partitioned] = [plain, partitioned].map(|answer| {
            comparable(answer.as_ref().unwrap_or_else(|error| panic!("{}: {error:?}", method.name)))
        });
        if !differs_from_call_to_call(method.name) {
            assert_eq!(plain, partitioned, "{}", method.name);
        }
    }
}

/// Detaches a partition concurrently, and cancels that while it waits for the transactions that use the table.
fn detach_halfway(database: &Database, parent: &str, part: &str) {
    let [mut user, mut detacher, mut watcher] = std::array::from_fn(|_| database.connect().unwrap());
    user.batch_execute(&format!("BEGIN; SELECT FROM {parent}")).unwrap();
    thread::scope(|scope| {
        let detach = format!("ALTER TABLE {parent} DETACH PARTITION {part} CONCURRENTLY");
        let waiting = scope.spawn(move || detacher.batch_execute(&detach));
        eventually("it waits", || {
            watcher
                .batch_execute(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                     WHERE query LIKE '%CONCURRENTLY' AND wait_event_type = 'Lock' AND datname = current_database()
                         AND EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)",
                )
                .unwrap();
            waiting.is_finished()
        });
        assert!(waiting.join().unwrap().is_err());
    });
}

#[test]
fn a_partition_that_is_half_detached_stops_neither_a_migration_nor_a_method() {
    for (parent, part) in [("calls_2026_01", "calls_2026_01_a"), ("proxy_calls", "calls_2025")] {
        for is_migrated in [false, true] {
            let Some((database, mut conn)) = partitioned_service() else { return };
            conn.batch_execute("DROP TABLE calls_later").unwrap();
            if is_migrated {
                migrate(&mut conn).unwrap();
            }
            detach_halfway(&database, parent, part);
            let obstacles = check(&mut conn).unwrap().obstacles;
            assert!(
                obstacles.iter().all(|obstacle| obstacle.name == "prepared statements"),
                "{part}: {obstacles:?}"
            );
            migrate(&mut conn).unwrap();
            assert!(check(&mut conn).unwrap().is_clean());
            KeyRow::default().insert(&mut conn);
            let created_at = at("2026-01-20T00:00:00Z");
            CallRow { created_at, ..CallRow::default() }.insert(&mut conn);
            for method in METHODS {
                let answer = conn.transaction(|conn| (method.call)(conn, &Input::default()));
                let is_for_the_part = matches!(&answer, Err(error) if format!("{error:?}").contains("no partition of relation"));
                assert!(answer.is_ok() || is_for_the_part, "{}: {answer:?}", method.name);
            }
            let finish = format!("ALTER TABLE {parent} DETACH PARTITION {part} FINALIZE");
            conn.batch_execute(&finish).unwrap();
            migrate(&mut conn).unwrap();
            assert!(check(&mut conn).unwrap().is_clean());
        }
    }
}

/// 60,000 calls of 50 keys, from December 2025 to February 2026, counted up to January 10.
fn filled() -> Option<PgConnection> {
    static DATABASE: OnceLock<Option<Database>> = OnceLock::new();
    let fill = || {
        let (database, mut conn) = partitioned_service()?;
        migrate(&mut conn).unwrap();
        conn.batch_execute(&format!(
            "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash)
                 SELECT 'key' || n, '{TENANT}', '', '', n FROM generate_series(0, 49) AS n;
             INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json,
                 cost_cents, created_at)
             SELECT n, '{TENANT}', 'key' || n % 50, '', '', '', repeat('x', 400), 0.5,
                 timestamptz '2025-12-01Z' + n * interval '2 minutes'
             FROM generate_series(1, 60000) AS n"
        ))
        .unwrap();
        let until = at("2026-01-10T00:00:00Z");
        eventually("a part is counted", || {
            let step = KeysDriver::new(&mut conn).roll_up_usage(until, 100_000).unwrap();
            step.is_some_and(|step| step.counted_to == until)
        });
        conn.batch_execute("VACUUM ANALYZE").unwrap();
        Some(database)
    };
    Some(DATABASE.get_or_init(fill).as_ref()?.connect().unwrap())
}

fn late() -> Input {
    Input {
        tenant_id: TENANT.into(),
        key_id: key("key7"),
        time: at("2026-01-20T00:07:00Z"),
        ..Input::default()
    }
}

const READERS: &[&str] = &[
    "fetch_key_usage",
    "fetch_key_usage_series",
    "fetch_key_usage_between",
    "fetch_keys_with_usage",
    "fetch_keys_with_usage.offset",
    "fetch_tenant_usage",
    "fetch_tenant_usage_by_key",
];

#[test]
fn usage_reads_the_partitions_of_its_range_by_their_index_and_no_other() {
    let Some(mut conn) = filled() else { return };
    for name in READERS {
        let method = METHODS.iter().find(|method| method.name == *name).unwrap();
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let (sql, plan) = explain(&mut conn, method, &late(), mode);
            let told = format!("{name}, {mode}\n{sql}\n{plan}");
            assert!(!plan.contains("Seq Scan on calls_"), "{told}");
            assert!(!plan.contains("Gather"), "{told}");
            assert!(plan.contains("calls_2026_01_b"), "{told}");
            for line in plan.lines().filter(|line| line.contains("Scan ")) {
                let is_before = line.contains(" on calls_2025") || line.contains(" on calls_2026_01_a");
                assert!(!is_before || line.contains("never executed"), "{line}\n{told}");
            }
        }
    }
}

#[test]
fn usage_of_partitioned_calls_is_planned_once() {
    for name in READERS {
        let Some(mut conn) = filled() else { return };
        let method = METHODS.iter().find(|method| method.name == *name).unwrap();
        for _ in 0..8 {
            conn.test_transaction(|conn| (method.call)(conn, &late()));
        }
        let planned = replanned(&mut conn);
        assert!(planned.is_empty(), "{name}: {planned:#?}");
    }
}

#[test]
fn maintenance_scans_no_partition_sequentially() {
    let Some(mut conn) = filled() else { return };
    for name in ["roll_up_usage", "delete_calls_before", "recount_usage", "retire_calls_before"] {
        let method = METHODS.iter().find(|method| method.name == name).unwrap();
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let (sql, plan) = explain(&mut conn, method, &late(), mode);
            assert!(!plan.contains("Seq Scan on calls_"), "{name}, {mode}\n{sql}\n{plan}");
        }
    }
}
