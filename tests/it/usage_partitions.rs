//! Usage with partitioned calls: every way to write a call, and to retire a partition.

use api_keys_driver::{Error, KeysDriver, Transaction, migrate};
use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::support::{TENANT, at, eventually, key, partitioned_service, tenant};

/// Calls of three months, counted up to the end of January.
fn counted() -> Option<(Database, PgConnection)> {
    let (database, mut conn) = partitioned_service()?;
    migrate(&mut conn).unwrap();
    conn.batch_execute(&format!(
        "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)
         SELECT n, '{TENANT}', 'key', '', '', '', '', n * 0.01, timestamptz '2025-12-01Z' + n * interval '1 hour'
         FROM generate_series(0, 2000) AS n"
    ))
    .unwrap();
    let until = at("2026-02-01T00:00:00Z");
    eventually("all is counted", || {
        KeysDriver::new(&mut conn)
            .roll_up_usage(until, 500)
            .unwrap()
            .is_some_and(|step| step.counted_to == until)
    });
    Some((database, conn))
}

fn usage(conn: &mut PgConnection) -> (i64, String) {
    let usage =
        KeysDriver::new(conn).fetch_key_usage(&tenant(), &key("key"), at("2025-01-01T00:00:00Z")).unwrap();
    (usage.request_count, usage.spend_cents.normalized().to_string())
}

fn plain(conn: &mut PgConnection) -> (i64, String) {
    use api_keys_driver::schema::proxy_calls;
    let sums = (diesel::dsl::count_star(), diesel::dsl::sum(proxy_calls::cost_cents));
    let (calls, spend): (i64, Option<api_keys_driver::BigDecimal>) =
        proxy_calls::table.filter(proxy_calls::api_key_id.eq("key")).select(sums).get_result(conn).unwrap();
    (calls, spend.unwrap_or_default().normalized().to_string())
}

#[test]
fn every_write_of_a_partition_is_recorded_under_any_table_name() {
    let Some((_database, mut conn)) = counted() else { return };
    for write in [
        "INSERT INTO calls_2026_01_a SELECT (jsonb_populate_record(c, '{\"id\": \"late\"}')).* FROM calls_2026_01_a AS c LIMIT 1",
        "UPDATE calls_2026_01_a SET cost_cents = 9 WHERE id IN ('800', '801')",
        "DELETE FROM calls_2026_01_b WHERE id = '1300'",
        "DELETE FROM calls_2026_01 WHERE id IN ('802', '1301')",
        "UPDATE proxy_calls SET created_at = '2025-12-24Z' WHERE id = '803'",
        "UPDATE proxy_calls SET created_at = '2026-05-05Z' WHERE id = '804'",
        "UPDATE proxy_calls SET created_at = '2026-01-20Z' WHERE id = '1900'",
        "UPDATE calls_later SET cost_cents = 4 WHERE id = '1901'",
        "ALTER TABLE calls_2026_01_a SET SCHEMA pg_catalog; ALTER TABLE pg_catalog.calls_2026_01_a SET SCHEMA public",
    ] {
        if !write.contains("pg_catalog") {
            conn.batch_execute(write).unwrap();
        }
        assert_eq!(usage(&mut conn), plain(&mut conn), "{write}");
    }
    conn.batch_execute(
        "CREATE SCHEMA old; ALTER TABLE calls_2025 SET SCHEMA old; DELETE FROM old.calls_2025 WHERE id = '7';
         CREATE TABLE calls_new PARTITION OF calls_2026_01 DEFAULT",
    )
    .unwrap();
    assert_eq!(usage(&mut conn), plain(&mut conn), "a partition in another schema");
    eventually("all is merged", || {
        let step = KeysDriver::new(&mut conn).roll_up_usage(at("2026-03-01T00:00:00Z"), 500).unwrap();
        step.is_some_and(|step| step.counted_to == at("2026-03-01T00:00:00Z"))
    });
    assert_eq!(usage(&mut conn), plain(&mut conn));
}

fn retire(conn: &mut PgConnection, end: DateTime<Utc>, how: &str) -> bool {
    let done = Transaction::attempts(3).run(conn, |conn| {
        if KeysDriver::new(conn).retire_calls_before(end)? < end {
            return Ok(false);
        }
        conn.batch_execute(how)?;
        Ok::<_, Error>(true)
    });
    done.unwrap()
}

#[test]
fn retiring_a_partition_keeps_its_usage() {
    let Some((_database, mut conn)) = counted() else { return };
    let before = usage(&mut conn);
    assert!(!retire(&mut conn, at("2026-03-01T00:00:00Z"), "DROP TABLE calls_later"), "it is not counted");
    assert!(retire(&mut conn, at("2026-01-01T00:00:00Z"), "DROP TABLE calls_2025"));
    assert_eq!(usage(&mut conn), before);
    assert!(retire(
        &mut conn,
        at("2026-01-16T00:00:00Z"),
        "ALTER TABLE calls_2026_01 DETACH PARTITION calls_2026_01_a"
    ));
    assert_eq!(usage(&mut conn), before);
    let rounded = KeysDriver::new(&mut conn)
        .fetch_key_usage(&tenant(), &key("key"), at("2026-01-10T00:07:00Z"))
        .unwrap();
    let quarter = KeysDriver::new(&mut conn)
        .fetch_key_usage(&tenant(), &key("key"), at("2026-01-10T00:00:00Z"))
        .unwrap();
    assert_eq!((rounded.request_count, rounded.is_rounded), (quarter.request_count, true));
    assert!(!quarter.is_rounded);
    let all = DateTime::<Utc>::MIN_UTC..DateTime::<Utc>::MAX_UTC;
    assert_eq!(KeysDriver::new(&mut conn).fetch_usage_drift(all, 5).unwrap(), []);
}

#[test]
fn dropping_a_partition_without_retiring_it_is_drift_that_is_repaired() {
    let Some((_database, mut conn)) = counted() else { return };
    conn.batch_execute("TRUNCATE calls_2026_01_b; ALTER TABLE proxy_calls DETACH PARTITION calls_2025")
        .unwrap();
    assert_ne!(usage(&mut conn), plain(&mut conn));
    let all = DateTime::<Utc>::MIN_UTC..DateTime::<Utc>::MAX_UTC;
    assert!(!KeysDriver::new(&mut conn).fetch_usage_drift(all.clone(), 5).unwrap().is_empty());
    let mut from = all.start;
    eventually("all is counted again", || {
        let step = KeysDriver::new(&mut conn).recount_usage(from).unwrap().unwrap();
        from = step.recounted_to;
        !step.is_behind
    });
    assert_eq!(KeysDriver::new(&mut conn).fetch_usage_drift(all, 5).unwrap(), []);
    assert_eq!(usage(&mut conn), plain(&mut conn));
}

#[test]
fn calls_are_deleted_from_their_partitions() {
    let Some((_database, mut conn)) = counted() else { return };
    let before = usage(&mut conn);
    let mut deleted = 0;
    loop {
        let batch = KeysDriver::new(&mut conn).delete_calls_before(at("2026-01-20T12:07:00Z"), 400).unwrap();
        deleted += batch;
        if batch == 0 {
            break;
        }
    }
    assert_eq!(deleted, 50 * 24 + 12);
    assert_eq!(plain(&mut conn).0, 2001 - 1212);
    assert_eq!(usage(&mut conn), before);
}
