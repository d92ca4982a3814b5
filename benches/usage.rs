//! The cost of usage that is rolled up, and its cost for writers: `cargo bench --bench usage` prints the figures of
//! `docs/usage.md`. `-- --calls 10000000` sets the number of calls of one key (1,000,000 by default); `-- --no-writers`
//! leaves out the inserts.

use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::{KeyId, KeysDriver, Page, TenantId, migrate};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Integer;
use throwaway_postgres::PrivateServer;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Midnight: the time of the last call.
fn now() -> DateTime<Utc> {
    "2026-06-01T00:00:00Z".parse().expect("a time")
}

fn tenant() -> TenantId {
    "00000000-0000-4000-8000-000000000000".into()
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let most = arguments.iter().position(|argument| argument == "--calls");
    let most: u64 = most.map_or(Ok(1_000_000), |at| arguments[at + 1].parse())?;
    let server = PrivateServer::start_new()?;
    let database = server.create_database()?;
    let mut conn = database.connect()?;
    migrate(&mut conn)?;

    if !arguments.iter().any(|argument| argument == "--no-writers") {
        println!("Writers: microseconds of the server's processor for an insert, and inserts a second\n");
        writers(database.url(), &mut conn)?;
        conn.batch_execute("TRUNCATE proxy_calls")?;
    }

    println!("\nCounting: calls a second, and what a reader notices of it\n");
    let sizes: Vec<u64> =
        [10_000, 100_000, 1_000_000, 10_000_000].into_iter().filter(|&n| n <= most).collect();
    load(&mut conn, &sizes)?;
    let before = usage(&mut conn, &key(sizes[0]), now() - TimeDelta::days(30));
    println!("{:44} {before:>8.0} us", format!("usage of 30 days, {} calls, not counted", sizes[0]));
    let largest = *sizes.last().expect("a size");
    let raw = usage(&mut conn, &key(largest), now() - TimeDelta::days(30));
    println!("{:44} {raw:>8.0} us", format!("usage of 30 days, {largest} calls, not counted"));
    count(database.url(), &mut conn)?;

    println!("\nReading: medians in microseconds\n");
    // A new connection, which plans statements for the current size of the tables.
    readers(&mut database.connect()?, &sizes)?;
    Ok(())
}

fn key(calls: u64) -> KeyId {
    format!("key-of-{calls}-0000-8000-0000000000").into()
}

/// Keys with this number of calls, spread evenly over a year.
fn load(conn: &mut PgConnection, sizes: &[u64]) -> Result<(), Error> {
    // These indexes are not read by any statement here, and take most of the time of loading.
    conn.batch_execute(
        "DROP INDEX ix_proxy_calls_api_key_id, ix_proxy_calls_request_hash, ix_proxy_calls_user_id,
             ix_proxy_calls_tenant_user, ix_proxy_calls_replay",
    )?;
    for &size in sizes {
        conn.batch_execute(&format!(
            "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)
             SELECT '{size}-' || n, '{}', '{}', '/v1/chat/completions', 'small', 'h', '{{}}', (n * 7 + 3) % 9973 * 0.0001,
                    timestamptz '{}' - interval '365 days' * (n / {size}.0)
             FROM generate_series(1, {size}) AS n",
            tenant(),
            key(size),
            now()
        ))?;
    }
    conn.batch_execute("VACUUM ANALYZE")?;
    Ok(())
}

/// Counts all calls, in steps of some sizes, while a reader fetches the usage of a key. For comparison, also beside a
/// session that only computes and touches no table.
fn count(url: &str, conn: &mut PgConnection) -> Result<(), Error> {
    let mut reader = PgConnection::establish(url)?;
    println!("{:44} {:>10} {:>8} {:>8}", "a reader (usage of a day)", "a second", "p50 us", "p99 us");
    let mut report = |name: &str, work: &mut dyn FnMut() -> Result<i64, Error>| {
        let start = Instant::now();
        let (done, [p50, p99]) = beside_a_reader(&mut reader, work)?;
        println!("{name:44} {:>10.0} {p50:>8.0} {p99:>8.0}", per(done, start.elapsed().as_secs_f64()));
        Ok::<_, Error>(())
    };
    for round in 0..2 {
        report("alone", &mut || {
            thread::sleep(Duration::from_secs(3));
            Ok(0)
        })?;
        report("beside a session that only computes", &mut || {
            conn.batch_execute("SELECT count(*) FROM generate_series(1, 20000000) AS n WHERE n % 7 = 3")?;
            Ok(0)
        })?;
        for limit in [1_000, 10_000, 50_000, 100_000] {
            if round > 0 || limit > 1_000 {
                // Forgets what is counted.
                conn.batch_execute(
                    "DELETE FROM usage_key_buckets; DELETE FROM usage_tenant_buckets; DELETE FROM usage_changes;
                     UPDATE usage_progress SET counted_to = '-infinity'",
                )?;
                conn.batch_execute("VACUUM ANALYZE")?;
            }
            report(&format!("beside counting, {limit} a step"), &mut || {
                let mut calls = 0;
                loop {
                    let step = KeysDriver::new(conn).roll_up_usage(now(), limit)?.expect("the only worker");
                    calls += step.calls_counted;
                    if !step.is_behind && step.counted_to >= now() {
                        return Ok(calls);
                    }
                }
            })?;
        }
    }
    conn.batch_execute("VACUUM ANALYZE")?;
    let changed = conn.batch_execute(&format!(
        "UPDATE proxy_calls SET cost_cents = 1 WHERE api_key_id = '{}'",
        key(100_000)
    ));
    changed?;
    let (start, mut merged) = (Instant::now(), 0);
    loop {
        let step = KeysDriver::new(conn).roll_up_usage(now(), 50_000)?.expect("the only worker");
        merged += step.changes_merged;
        if !step.is_behind {
            break;
        }
    }
    println!(
        "{:44} {:>8.0}",
        format!("changes merged a second, of {merged}"),
        per(merged, start.elapsed().as_secs_f64())
    );
    conn.batch_execute("VACUUM ANALYZE")?;
    Ok(())
}

/// Works while a reader asks, with pauses, and returns the median and the 99th percentile of the reader's times in
/// microseconds.
fn beside_a_reader<T>(
    reader: &mut PgConnection,
    work: &mut dyn FnMut() -> Result<T, Error>,
) -> Result<(T, [f64; 2]), Error> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut times = Vec::new();
            while !over.load(Relaxed) {
                times.push(timed(|| ask(reader, &key(10_000), now() - TimeDelta::days(1))));
                thread::sleep(Duration::from_millis(2));
            }
            times
        });
        let done = work();
        over.store(true, Relaxed);
        let mut times = reading.join().expect("the reader");
        times.sort_unstable();
        let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e6;
        Ok((done?, [at(50), at(99)]))
    })
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn per(count: i64, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn readers(conn: &mut PgConnection, sizes: &[u64]) -> Result<(), Error> {
    for &size in sizes {
        for (days, shift) in [(30, 0), (365, 0), (30, 437)] {
            let since = now() - TimeDelta::days(days) - TimeDelta::seconds(shift);
            let told = if shift > 0 { ", any moment" } else { "" };
            println!(
                "{:44} {:>8.0}",
                format!("{size} calls, {days} days{told}"),
                usage(conn, &key(size), since)
            );
        }
    }
    // 10^8 calls of a year, in each of 50 keys; and as many calls of one quarter hour as that makes, to read a part of.
    conn.batch_execute(&format!(
        "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash)
         SELECT 'huge' || k, '{tenant}', '', '', 'huge' || k FROM generate_series(1, 50) AS k;
         INSERT INTO usage_key_buckets
         SELECT '{tenant}', 'huge' || k, false, timestamptz '{now}' - n * interval '15 minutes', 2854, 2854 * 0.4986, 0
         FROM generate_series(1, 35040) AS n, generate_series(1, 50) AS k;
         INSERT INTO usage_key_buckets
         SELECT tenant_id, api_key_id, true, date_bin('1 day', start, '2000-01-01 00:00Z'), sum(calls), sum(spend), 0
         FROM usage_key_buckets WHERE api_key_id LIKE 'huge%' GROUP BY 1, 2, 4;
         INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)
         SELECT 'huge' || n, '{tenant}', 'huge1', '/v1/chat/completions', 'small', 'h', '{{}}', 0.4986,
                timestamptz '{now}' - interval '30 days' - interval '15 minutes' * (n / 2854.0)
         FROM generate_series(0, 2853) AS n;
         DELETE FROM usage_changes",
        tenant = tenant(),
        now = now()
    ))?;
    conn.batch_execute("VACUUM ANALYZE")?;
    let huge = KeyId::from("huge1");
    for (days, shift) in [(30, 0), (365, 0), (30, 437)] {
        let since = now() - TimeDelta::days(days) - TimeDelta::seconds(shift);
        let told = if shift > 0 { ", any moment" } else { "" };
        println!("{:44} {:>8.0}", format!("100000000 calls, {days} days{told}"), usage(conn, &huge, since));
    }
    let page = times(|| {
        let since = now() - TimeDelta::days(30);
        let page = KeysDriver::new(conn).fetch_keys_with_usage(&tenant(), since, Page::default());
        assert_eq!(page.expect("a page").len(), 50);
    });
    println!("{:44} {page:>8.0}", "page of 50 such keys with usage of 30 days");
    let days: Vec<_> = (0..=30).rev().map(|day| now() - TimeDelta::days(day) - TimeDelta::hours(2)).collect();
    let between = times(|| {
        KeysDriver::new(conn).fetch_key_usage_between(&tenant(), &huge, &days).expect("sums");
    });
    println!("{:44} {between:>8.0}", "30 local days of such a key");
    let of_tenant = times(|| {
        KeysDriver::new(conn).fetch_tenant_usage(&tenant(), now() - TimeDelta::days(365)).expect("sums");
    });
    println!("{:44} {of_tenant:>8.0}", "usage of the tenant, 365 days");
    let by_key = times(|| {
        let range = now() - TimeDelta::days(30)..now();
        KeysDriver::new(conn).fetch_tenant_usage_by_key(&tenant(), range, 20).expect("sums");
    });
    println!("{:44} {by_key:>8.0}", "the 20 dearest of its keys, 30 days");
    Ok(())
}

fn ask(conn: &mut PgConnection, key_id: &KeyId, since: DateTime<Utc>) {
    KeysDriver::new(conn).fetch_key_usage(&tenant(), key_id, since).expect("an answer");
}

fn usage(conn: &mut PgConnection, key_id: &KeyId, since: DateTime<Utc>) -> f64 {
    times(|| ask(conn, key_id, since))
}

/// The median of some hundred calls, or of fewer if they are slow.
fn times(mut call: impl FnMut()) -> f64 {
    (0..8).for_each(|_| call());
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 400 && (times.len() < 5 || start.elapsed() < Duration::from_secs(3)) {
        times.push(timed(&mut call));
    }
    median(times)
}

fn timed(call: impl FnOnce()) -> Duration {
    let start = Instant::now();
    call();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// Many short alternating runs, so that a change in the machine's speed affects both sides.
const RUNS: u32 = 24;
const INSERTS: u32 = 2_000;

/// The existing service's insert: one statement as text, all columns, nine indexes.
fn writers(url: &str, conn: &mut PgConnection) -> Result<(), Error> {
    // Counting has begun, as in any database with a worker. Calls that are loaded later are newer.
    let until = now() - TimeDelta::days(3_650);
    while KeysDriver::new(conn).roll_up_usage(until, 1_000)?.is_some_and(|step| step.is_behind) {}
    println!("{:32} {:>10} {:>10} {:>10} {:>10}", "", "without", "with", "ratio", "rate ratio");
    for (clients, statements) in [(1, 1), (1, 10), (8, 1), (8, 10)] {
        let mut runs = [Vec::new(), Vec::new()];
        for run in 0..RUNS {
            for index in 0..2 {
                let with = (index + run) % 2 == 1;
                let state = if with { "ENABLE" } else { "DISABLE" };
                conn.batch_execute(&format!(
                    "TRUNCATE proxy_calls; ALTER TABLE proxy_calls {state} TRIGGER USER; CHECKPOINT"
                ))?;
                runs[usize::from(with)].push(insert(url, clients, statements)?);
            }
        }
        let middle = |runs: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
            let mut all: Vec<f64> = runs.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let (without, with) = (middle(&runs[0], |run| run.0), middle(&runs[1], |run| run.0));
        let (rate, rate_with) = (middle(&runs[0], |run| run.1), middle(&runs[1], |run| run.1));
        println!(
            "{:32} {without:>7.1} us {with:>7.1} us {:>10.3} {:>10.3}",
            format!("{clients} client(s), {statements} a transaction"),
            with / without,
            rate_with / rate
        );
    }
    conn.batch_execute("ALTER TABLE proxy_calls ENABLE TRIGGER USER")?;
    Ok(())
}

/// The server's processor time of an insert in microseconds, and the inserts per second.
fn insert(url: &str, clients: u32, statements: u32) -> Result<(f64, f64), Error> {
    let each = INSERTS / clients;
    let start = Barrier::new(clients as usize);
    let results: Vec<Result<(f64, f64), Error>> = thread::scope(|scope| {
        let run = |client: u32| {
            let start = &start;
            scope.spawn(move || {
                let mut conn = PgConnection::establish(url)?;
                let pid = diesel::select(diesel::dsl::sql::<Integer>("pg_backend_pid()"));
                let pid: i32 = pid.get_result(&mut conn)?;
                for index in 0..50 {
                    conn.batch_execute(&insertion(&format!("warm-{client}-{index}")))?;
                }
                start.wait();
                let (cpu, begin) = (processor_time(pid)?, Instant::now());
                for index in 0..each {
                    if statements > 1 && index % statements == 0 {
                        conn.batch_execute("BEGIN")?;
                    }
                    conn.batch_execute(&insertion(&format!("{client}-{index}")))?;
                    if statements > 1 && index % statements == statements - 1 {
                        conn.batch_execute("COMMIT")?;
                    }
                }
                Ok((processor_time(pid)? - cpu, begin.elapsed().as_secs_f64()))
            })
        };
        let handles: Vec<_> = (0..clients).map(run).collect();
        handles.into_iter().map(|handle| handle.join().expect("a client")).collect()
    });
    let (mut cpu, mut seconds) = (0.0, 0.0_f64);
    for result in results {
        let (own, elapsed) = result?;
        cpu += own;
        seconds = seconds.max(elapsed);
    }
    let inserts = f64::from(each * clients);
    Ok((cpu * 1e6 / inserts, inserts / seconds))
}

fn insertion(id: &str) -> String {
    let (request, response) = ("x".repeat(800), "y".repeat(800));
    let hash = "0123456789abcdef".repeat(4);
    format!(
        "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, response_hash,
             response_json, status_code, error_code, input_tokens, output_tokens, cost_cents, policy_decisions_json,
             was_blocked, block_reason, latency_ms, upstream_latency_ms, replay_eligible, replayed_from_id, created_at, user_id)
         VALUES ('{id}', '{}', 'key', '/v1/chat/completions', 'gpt-4o-mini', '{hash}', '{{\"prompt\": \"{request}\"}}', '{hash}',
             '{{\"text\": \"{response}\"}}', 200, NULL, 100, 200, 0.1234, NULL, false, NULL, 900, 800, true, NULL, now(), 'user')",
        tenant()
    )
}

/// The processor time of a process on this machine in seconds, from the scheduler.
fn processor_time(pid: i32) -> Result<f64, Error> {
    let schedule = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let nanoseconds: u64 = schedule.split(' ').next().unwrap_or_default().parse()?;
    Ok(Duration::from_nanos(nanoseconds).as_secs_f64())
}
