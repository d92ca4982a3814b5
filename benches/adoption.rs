//! What adopting the crate costs: `cargo bench --bench adoption` prints the figures of `docs/adoption.md` and
//! `docs/partitioning.md`. `-- check`, `-- migrate` and `-- partitions` choose one; `KEYS` and `CALLS` set the size.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::{Bucket, KeysDriver, Migrator, Progress, check, migrate};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::{Database, PrivateServer};

type Error = Box<dyn std::error::Error + Send + Sync>;

const TENANT: &str = "11111111-1111-1111-1111-111111111111";

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let is_asked_for = |what: &str| {
        let mut chosen =
            ["check", "migrate", "partitions"].iter().filter(|name| arguments.iter().any(|a| a == *name));
        chosen.clone().next().is_none() || chosen.any(|name| *name == what)
    };
    let server = PrivateServer::start_new()?;
    if is_asked_for("check") {
        check_among_500_tables(&server.create_database()?)?;
    }
    if is_asked_for("partitions") {
        usage_of_partitioned_calls(&server)?;
    }
    if is_asked_for("migrate") {
        migrate_with_writers_on(&server.create_database()?)?;
    }
    Ok(())
}

/// The median of the times, in milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    milliseconds(times[times.len() / 2])
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn timed<T>(call: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    call();
    started.elapsed()
}

fn check_among_500_tables(database: &Database) -> Result<(), Error> {
    let mut conn = database.connect()?;
    migrate(&mut conn)?;
    conn.batch_execute(
        "DO $$ BEGIN FOR n IN 1..500 LOOP
             EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, a text, b timestamptz, UNIQUE (a, b))', n);
         END LOOP; END $$; ANALYZE",
    )?;
    let is_clean = |conn: &mut PgConnection| assert!(check(conn).expect("a report").is_clean());
    let again = (0..51).map(|_| timed(|| is_clean(&mut conn))).collect();
    let mut fresh = Vec::new();
    for _ in 0..51 {
        let mut conn = database.connect()?;
        fresh.push(timed(|| is_clean(&mut conn)));
    }
    println!("check among 500 tables, medians of 51 (other work on the machine lengthens them):");
    println!(
        "  {:.1} ms on a fresh connection, {:.1} ms on one that was used\n",
        median(fresh),
        median(again)
    );
    Ok(())
}

fn usage_of_partitioned_calls(server: &PrivateServer) -> Result<(), Error> {
    const CALLS: u32 = 1_000_000;
    println!("| {CALLS} calls of a year, of 100 keys | plain | 12 partitions |\n|---|---|---|");
    let now: DateTime<Utc> = "2026-01-01T00:00:00Z".parse()?;
    let mut columns = Vec::new();
    for is_partitioned in [false, true] {
        let database = server.create_database()?;
        let mut conn = database.connect()?;
        migrate(&mut conn)?;
        if is_partitioned {
            conn.batch_execute(
                "ALTER TABLE proxy_calls RENAME TO plain;
                 CREATE TABLE proxy_calls (LIKE plain INCLUDING DEFAULTS, PRIMARY KEY (id, created_at))
                     PARTITION BY RANGE (created_at);
                 DROP TABLE plain;
                 CREATE INDEX ix_proxy_calls_created_at ON proxy_calls (created_at);
                 DO $$ BEGIN FOR n IN 0..11 LOOP
                     EXECUTE format('CREATE TABLE calls_%s PARTITION OF proxy_calls FOR VALUES FROM (%L) TO (%L)', n,
                         timestamptz '2025-01-01Z' + n * interval '1 month',
                         timestamptz '2025-01-01Z' + (n + 1) * interval '1 month');
                 END LOOP; END $$",
            )?;
            migrate(&mut conn)?;
        }
        conn.batch_execute(&format!(
            "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents,
                 created_at)
             SELECT n, '{TENANT}', 'key' || n % 100, '/', 'm', 'h', '{{}}', 0.1,
                 timestamptz '2025-01-01Z' + n * interval '31.5 seconds'
             FROM generate_series(1, {CALLS}) AS n"
        ))?;
        conn.batch_execute("VACUUM ANALYZE")?;
        let before = usages(&mut conn, now)?;
        let mut step = KeysDriver::new(&mut conn).roll_up_usage(now, 50_000)?;
        while step.as_ref().is_some_and(|step| step.is_behind) {
            step = KeysDriver::new(&mut conn).roll_up_usage(now, 50_000)?;
        }
        conn.batch_execute("VACUUM ANALYZE")?;
        columns.push((before, usages(&mut conn, now)?));
    }
    let names = ["usage of 1 day", "usage of 30 days", "usage of 365 days", "series of 30 days by the day"];
    for (index, name) in names.iter().enumerate() {
        println!("| {name}, not counted | {:.2} ms | {:.2} ms |", columns[0].0[index], columns[1].0[index]);
    }
    for (index, name) in names.iter().enumerate() {
        println!("| {name}, counted | {:.2} ms | {:.2} ms |", columns[0].1[index], columns[1].1[index]);
    }
    println!();
    Ok(())
}

/// Medians: the usage of a key, and a series.
fn usages(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<Vec<f64>, Error> {
    let (tenant_id, key_id) = (TENANT.into(), "key7".into());
    let mut medians = Vec::new();
    for days in [1, 30, 365, -30] {
        let since = now - TimeDelta::days(i64::abs(days));
        let mut call = || {
            let mut keys = KeysDriver::new(conn);
            if days > 0 {
                keys.fetch_key_usage(&tenant_id, &key_id, since).map(|_| ())
            } else {
                keys.fetch_key_usage_series(&tenant_id, &key_id, since..now, Bucket::Day).map(|_| ())
            }
        };
        for _ in 0..8 {
            call()?;
        }
        medians.push(median((0..101).map(|_| timed(&mut call)).collect()));
    }
    Ok(medians)
}

/// What a writer of the service does, each in its own transaction.
const WRITES: [(&str, &str); 4] = [
    (
        "insert a key",
        "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash)
         VALUES (gen_random_uuid(), '{tenant}', 'New', 'sk-live-ab', gen_random_uuid())",
    ),
    (
        "record a use",
        "UPDATE api_keys SET total_requests = total_requests + 1, last_used_at = now() WHERE id = '{key}'",
    ),
    (
        "freeze a key",
        "UPDATE api_keys SET is_frozen = NOT is_frozen, frozen_at = now() WHERE id = '{key}'",
    ),
    (
        "insert a call",
        "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents)
         VALUES (gen_random_uuid(), '{tenant}', '{key}', '/', 'm', 'h', '{}', 0.1)",
    ),
];

fn size(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|size| size.parse().ok()).unwrap_or(default)
}

/// Runs one kind of write until the migration is over. Returns the longest time during each step, in the order of the
/// steps.
fn write_on(
    url: &str,
    sql: &str,
    keys: u32,
    step: &AtomicUsize,
    is_over: &AtomicBool,
) -> BTreeMap<usize, Duration> {
    let mut conn = PgConnection::establish(url).expect("a writer");
    let mut longest: BTreeMap<usize, Duration> = BTreeMap::new();
    let mut key: u32 = 0;
    while !is_over.load(Ordering::Relaxed) {
        // Every key once before any is written twice: 7,919 is a prime.
        key = (key + 7_919) % keys;
        let sql = sql.replace("{key}", &(key + 1).to_string());
        let before = step.load(Ordering::Relaxed);
        let took = timed(|| conn.batch_execute(&sql).expect("a write"));
        // A wait that spans several steps counts for each of them.
        for step in before..=step.load(Ordering::Relaxed) {
            let most = longest.entry(step).or_default();
            *most = took.max(*most);
        }
        thread::sleep(Duration::from_micros(500));
    }
    longest
}

/// The service's tables with rows. Their indexes are built after the rows, which is faster.
fn fill(conn: &mut PgConnection, keys: u32, calls: u32) -> Result<(), Error> {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/existing_service/schema.sql");
    conn.batch_execute(&fs::read_to_string(schema)?)?;
    conn.batch_execute(&format!(
        "SET synchronous_commit = off; SET maintenance_work_mem = '1GB'; SET session_replication_role = replica;
         INSERT INTO tenants (id, name, slug) VALUES ('{TENANT}', 'One', 'one');
         CREATE TEMP TABLE indexes AS
             SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS sql FROM pg_index
             WHERE indrelid IN ('api_keys'::regclass, 'proxy_calls'::regclass) AND NOT indisprimary;
         DO $$ DECLARE name text; BEGIN
             FOR name IN SELECT indexes.name FROM indexes LOOP EXECUTE 'DROP INDEX ' || name; END LOOP;
         END $$;
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, is_frozen, created_at)
         SELECT n, '{TENANT}', 'Key', 'sk-live-ab', md5(n::text), n % 100 = 0,
             timestamptz '2026-01-01Z' + n * interval '1 second'
         FROM generate_series(1, {keys}) AS n;
         INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)
         SELECT n, '{TENANT}', n % {keys} + 1, '/v1/chat', 'm', md5(n::text), '{{}}', 0.1,
             timestamptz '2026-01-01Z' + n * interval '1 second'
         FROM generate_series(1, {calls}) AS n;
         DO $$ DECLARE sql text; BEGIN
             FOR sql IN SELECT indexes.sql FROM indexes LOOP EXECUTE sql; END LOOP;
         END $$;
         RESET synchronous_commit; RESET maintenance_work_mem; RESET session_replication_role"
    ))?;
    conn.batch_execute("VACUUM ANALYZE")?;
    Ok(())
}

fn migrate_with_writers_on(database: &Database) -> Result<(), Error> {
    let (keys, calls) = (size("KEYS", 10_000), size("CALLS", 100_000));
    let mut conn = database.connect()?;
    fill(&mut conn, keys, calls)?;
    println!(
        "Migrating {keys} keys and {calls} calls: the longest time of a write in each step, writers included\n"
    );

    let (step, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut begun: Vec<(String, Instant)> = Vec::new();
    let longest = thread::scope(|scope| {
        let writers = WRITES.map(|(_, sql)| {
            let (step, is_over) = (&step, &is_over);
            scope.spawn(move || {
                write_on(database.url(), &sql.replace("{tenant}", TENANT), keys, step, is_over)
            })
        });
        thread::sleep(Duration::from_secs(2));
        let migrated = Migrator::new()
            .report_to(|progress| match progress {
                Progress::Step { name, number, .. } => {
                    begun.push((name.clone(), Instant::now()));
                    step.store(*number, Ordering::Relaxed);
                }
                other => eprintln!("{other:?}"),
            })
            .migrate(&mut conn);
        begun.push((String::new(), Instant::now()));
        step.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_secs(2));
        is_over.store(true, Ordering::Relaxed);
        let longest = writers.map(|writer| writer.join().expect("a writer"));
        migrated.map(|_| longest)
    })?;

    println!("| step | takes | {} |", WRITES.map(|(write, _)| write).join(" | "));
    println!("|---|---|{}", "---|".repeat(WRITES.len()));
    let row = |name: &str, takes: &str, step: usize| {
        let times = longest.each_ref().map(|writer| {
            writer
                .get(&step)
                .map_or_else(|| "no write".into(), |most| format!("{:.1} ms", milliseconds(*most)))
        });
        println!("| {name} | {takes} | {} |", times.join(" | "));
    };
    row("before", "", 0);
    for (index, pair) in (1..).zip(begun.windows(2)) {
        let title = pair[0].0.split_once('_').map_or("", |(_, title)| title);
        let takes = format!("{:.1} ms", milliseconds(pair[1].1 - pair[0].1));
        row(&format!("`{title}`"), &takes, index);
    }
    row("after", "", begun.len());
    Ok(())
}
