//! How long each step of the migration holds up a writer, as the writers measure it. The table of
//! `docs/adoption.md` is what this prints.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::{Migrator, Progress};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::migrations::{lines, names};
use crate::support::{TENANT, existing_service};

/// What a writer of the service does, each in a transaction of its own.
const WRITES: [(&str, &str); 3] = [
    ("insert a key", "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash)
         VALUES (gen_random_uuid(), '{tenant}', 'New', 'sk-live-ab', gen_random_uuid())"),
    ("record a use", "UPDATE api_keys SET total_requests = total_requests + 1, last_used_at = now()
         WHERE id = (SELECT (floor(random() * {keys}) + 1)::int::text)"),
    ("insert a call", "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents)
         VALUES (gen_random_uuid(), '{tenant}', '1', '/', 'm', 'h', '{}', 0.1)"),
];

/// The sizes come from `KEYS` and `CALLS`; a hundredth of a large deployment's where they are not set.
fn size(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|size| size.parse().ok()).unwrap_or(default)
}

/// Runs one kind of write until it is told to stop; the longest time of each step, in the order of the steps.
fn write_on(
    url: &str,
    sql: &str,
    step: &AtomicUsize,
    is_over: &AtomicBool,
) -> BTreeMap<usize, (Duration, u32)> {
    let mut conn = PgConnection::establish(url).unwrap();
    let mut longest: BTreeMap<usize, (Duration, u32)> = BTreeMap::new();
    while !is_over.load(Ordering::Relaxed) {
        let before = step.load(Ordering::Relaxed);
        let started = Instant::now();
        conn.batch_execute(sql).unwrap();
        let took = started.elapsed();
        // A wait that outlasts its step counts for the step in which it began, and for the next.
        for step in before..=step.load(Ordering::Relaxed) {
            let (most, writes) = longest.entry(step).or_default();
            *most = took.max(*most);
            *writes += 1;
        }
        thread::sleep(Duration::from_micros(500));
    }
    longest
}

#[test]
#[ignore = "a measurement: KEYS=1000000 CALLS=10000000 cargo test --release --test it holds_up -- --ignored --nocapture"]
fn how_long_each_step_holds_up_a_writer() {
    let Some((database, mut conn)) = existing_service() else { return };
    let (keys, calls) = (size("KEYS", 10_000), size("CALLS", 100_000));
    conn.batch_execute(&format!(
        "SET synchronous_commit = off;
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, is_frozen, created_at)
         SELECT n, '{TENANT}', 'Key', 'sk-live-ab', md5(n::text), n % 100 = 0, '2026-01-01Z'::timestamptz + n * interval '1 second'
         FROM generate_series(1, {keys}) AS n;
         INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)
         SELECT n, '{TENANT}', n % {keys} + 1, '/v1/chat', 'm', md5(n::text), '{{}}', 0.1,
             '2026-01-01Z'::timestamptz + n * interval '1 second'
         FROM generate_series(1, {calls}) AS n;
         RESET synchronous_commit"
    ))
    .unwrap();
    conn.batch_execute("VACUUM ANALYZE").unwrap();
    println!("{keys} keys and {calls} calls on {}", lines(&mut conn, "SELECT version() AS line")[0]);

    let (step, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut times: Vec<(String, Instant)> = Vec::new();
    let longest = thread::scope(|scope| {
        let writers = WRITES.map(|(_, sql)| {
            let sql = sql.replace("{tenant}", TENANT).replace("{keys}", &keys.to_string());
            let (url, step, is_over) = (database.url(), &step, &is_over);
            scope.spawn(move || write_on(url, &sql, step, is_over))
        });
        thread::sleep(Duration::from_secs(2));
        let migrated = Migrator::new()
            .report_to(|progress| match progress {
                Progress::Step { name, nth, .. } => {
                    times.push((name.clone(), Instant::now()));
                    step.store(*nth, Ordering::Relaxed);
                }
                other => eprintln!("{other:?}"),
            })
            .migrate(&mut conn);
        times.push((String::new(), Instant::now()));
        step.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_secs(2));
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(migrated.unwrap(), names());
        writers.map(|writer| writer.join().unwrap())
    });

    let mut table = String::from("| step | takes |");
    for (write, _) in WRITES {
        write!(table, " {write} |").unwrap();
    }
    table.push_str("\n|---|---|---|---|---|\n");
    let milliseconds = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let row = |label: &str, took: Option<Duration>, step: usize| {
        let columns: Vec<_> = longest
            .iter()
            .map(|writer| {
                writer.get(&step).map_or_else(|| "no write".into(), |(most, _)| milliseconds(*most))
            })
            .collect();
        format!("| {label} | {} | {} |\n", took.map_or_else(String::new, milliseconds), columns.join(" | "))
    };
    table.push_str(&row("before", None, 0));
    for (nth, pair) in (1..).zip(times.windows(2)) {
        let title = pair[0].0.split_once('_').map_or("", |(_, title)| title);
        table.push_str(&row(&format!("`{title}`"), Some(pair[1].1 - pair[0].1), nth));
    }
    table.push_str(&row("after", None, times.len()));
    println!("{table}");
    for writer in longest {
        assert!(writer.values().all(|(_, writes)| *writes > 0));
    }
}
