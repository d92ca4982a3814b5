//! The soak of usage: writers of every kind, workers that count, merge, recount and delete, sessions that are
//! terminated, and a server that crashes. Checkers compare every method with the plain sum over the calls, in one
//! snapshot.
//!
//! `cargo run --release --example usage_soak -- --seconds 600` prints what was done, and fails on the first difference that
//! it counted.

#[path = "usage_comparison.rs"]
mod comparison;
#[path = "usage_random.rs"]
mod random;
#[path = "usage_statements.rs"]
mod statements;

use std::fmt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::{KeysDriver, Result};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::PrivateServer;

use self::comparison::Snapshot;
use self::random::Random;
use self::statements::statement;

const TENANTS: [&str; 2] = ["a", "b"];
const KEYS: u64 = 6;
const WRITERS: u64 = 6;
const CHECKERS: u64 = 3;
/// The soak continues until this number of sums was compared, and everything was tried.
const ENOUGH: u64 = 10_000;
/// How much longer it may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// The counts of comparisons are counts of sums: a page or a series has several.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) compared: AtomicU64,
    pub(crate) not_zero: AtomicU64,
    pub(crate) rounded: AtomicU64,
    pub(crate) not_a_number: AtomicU64,
    pub(crate) differences: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) rollbacks: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) counted: AtomicU64,
    pub(crate) merged: AtomicU64,
    pub(crate) recounts: AtomicU64,
    pub(crate) deleted: AtomicU64,
    pub(crate) crashes: AtomicU64,
    pub(crate) sessions_ended: AtomicU64,
}

impl Counts {
    pub(crate) fn tried_everything(&self) -> bool {
        let done = [
            &self.rounded,
            &self.commits,
            &self.counted,
            &self.merged,
            &self.deleted,
            &self.crashes,
            &self.sessions_ended,
        ];
        self.compared.load(Relaxed) >= ENOUGH && done.iter().all(|count| count.load(Relaxed) > 0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in [
            ("sums compared", &self.compared),
            ("of them not zero", &self.not_zero),
            ("of them in whole quarter hours", &self.rounded),
            ("of them with a cost that is NaN", &self.not_a_number),
            ("DIFFERENCES", &self.differences),
            ("transactions committed", &self.commits),
            ("transactions rolled back", &self.rollbacks),
            ("transactions failed", &self.failures),
            ("roll-up steps", &self.steps),
            ("calls counted", &self.counted),
            ("changes merged", &self.merged),
            ("recounts", &self.recounts),
            ("calls deleted, their usage kept", &self.deleted),
            ("crashes and restarts", &self.crashes),
            ("times that sessions were ended", &self.sessions_ended),
        ] {
            writeln!(f, "{name:34} {:>9}", count.load(Relaxed))?;
        }
        Ok(())
    }
}

struct Fire {
    url: String,
    over: AtomicBool,
    counts: Counts,
}

/// Runs for a while, then counts all that is left and compares once more.
pub(crate) fn fire(length: Duration) -> Counts {
    let mut server = PrivateServer::start_new().expect("a server");
    let database = server.create_database().expect("a database");
    let mut conn = database.connect().expect("a connection");
    api_keys_driver::migrate(&mut conn).expect("a migrated database");
    set_up(&mut conn);
    drop(conn);
    let fire =
        Fire { url: database.url().to_owned(), over: AtomicBool::new(false), counts: Counts::default() };
    thread::scope(|scope| {
        let spawn =
            |name: &'static str, seed: u64, work: fn(&Fire, &mut PgConnection, &mut Random) -> Result<()>| {
                let fire = &fire;
                scope.spawn(move || fire.keep(name, seed, work));
            };
        (0..WRITERS).for_each(|n| spawn("writer", n, Fire::write));
        (0..CHECKERS).for_each(|n| spawn("checker", 100 + n, Fire::check));
        spawn("worker", 200, Fire::roll_up);
        spawn("worker", 201, Fire::roll_up);
        spawn("retention", 202, Fire::delete);
        fire.inject_faults(&mut server, Instant::now() + length);
        fire.over.store(true, Relaxed);
    });
    fire.finish();
    fire.counts
}

fn set_up(conn: &mut PgConnection) {
    conn.batch_execute(&format!(
        "ALTER TABLE proxy_calls DROP CONSTRAINT IF EXISTS proxy_calls_cost_cents_is_a_number;
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash)
         SELECT t || n, t, '', '', t || n FROM unnest('{{a,b}}'::text[]) AS t, generate_series(0, {KEYS} - 2) AS n;
         CREATE TABLE kept (LIKE proxy_calls);
         CREATE INDEX ON kept (tenant_id, api_key_id, created_at);
         CREATE VIEW every_call AS
             SELECT tenant_id, api_key_id, created_at, cost_cents FROM proxy_calls
             UNION ALL SELECT tenant_id, api_key_id, created_at, cost_cents FROM kept;
         CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO kept SELECT OLD.*; RETURN OLD; END';
         CREATE TRIGGER keep BEFORE DELETE ON proxy_calls FOR EACH ROW
         WHEN (current_setting('application_name') = 'retention') EXECUTE FUNCTION keep()"
    ))
    .expect("tables");
}

fn add(count: &AtomicU64, by: u64) {
    count.fetch_add(by, Relaxed);
}

impl Fire {
    /// Works on one connection after another until the end.
    fn keep(&self, name: &str, seed: u64, work: fn(&Self, &mut PgConnection, &mut Random) -> Result<()>) {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed + 1).wrapping_mul(0x2545_f491_4f6c_dd1d));
        while !self.over.load(Relaxed) {
            let Ok(mut conn) = PgConnection::establish(&self.url) else {
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            if conn.batch_execute(&format!("SET application_name = '{name}'")).is_err() {
                continue;
            }
            while !self.over.load(Relaxed) {
                if work(self, &mut conn, &mut random).is_err() && conn.batch_execute("ROLLBACK").is_err() {
                    break;
                }
            }
        }
    }

    fn write(&self, conn: &mut PgConnection, random: &mut Random) -> Result<()> {
        let isolation = match random.below(10) {
            0 => "REPEATABLE READ",
            1 => "SERIALIZABLE",
            _ => "READ COMMITTED",
        };
        conn.batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}"))?;
        for _ in 0..random.of(&[1, 1, 1, 2, 5]) {
            let savepoint = random.below(5) == 0;
            if savepoint {
                conn.batch_execute("SAVEPOINT s")?;
            }
            if let Err(error) = conn.batch_execute(&statement(random)) {
                add(&self.counts.failures, 1);
                return Err(error.into());
            }
            if savepoint && random.below(2) == 0 {
                conn.batch_execute("ROLLBACK TO s")?;
            }
        }
        match random.below(100) {
            0..12 => thread::sleep(Duration::from_millis(random.below(500))),
            12 => thread::sleep(Duration::from_secs(2)),
            _ => {}
        }
        if random.below(10) == 0 {
            conn.batch_execute("ROLLBACK")?;
            add(&self.counts.rollbacks, 1);
        } else {
            conn.batch_execute("COMMIT")?;
            add(&self.counts.commits, 1);
        }
        Ok(())
    }

    fn roll_up(&self, conn: &mut PgConnection, random: &mut Random) -> Result<()> {
        if random.below(60) == 0 {
            let from = random.moment();
            if KeysDriver::new(conn).recount_usage(from)?.is_some() {
                add(&self.counts.recounts, 1);
            }
            return Ok(());
        }
        let isolation = random.of(&["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ"]);
        conn.batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}"))?;
        // Several steps in one transaction, which is not recommended, but must be correct.
        for _ in 0..random.of(&[1, 1, 1, 3]) {
            let graces = [0, 200, 1_000, 2_000, 2_000, 3_000, 5_000, 5_000, 60_000];
            let grace = if random.below(60) == 0 { -5_000 } else { random.of(&graces) };
            let until = Utc::now() - TimeDelta::milliseconds(grace);
            let limit = random.of(&[1, 30, 1_000, 100_000]);
            if let Some(step) = KeysDriver::new(conn).roll_up_usage(until, limit)? {
                add(&self.counts.steps, 1);
                add(&self.counts.counted, step.calls_counted.unsigned_abs());
                add(&self.counts.merged, step.changes_merged.unsigned_abs());
            }
        }
        conn.batch_execute(if random.below(20) == 0 { "ROLLBACK" } else { "COMMIT" })?;
        thread::sleep(Duration::from_millis(random.below(30)));
        Ok(())
    }

    fn delete(&self, conn: &mut PgConnection, random: &mut Random) -> Result<()> {
        let moment = Utc::now() - TimeDelta::days(20) - random.age();
        let deleted = KeysDriver::new(conn).delete_calls_before(moment, random.of(&[1, 10, 100]))?;
        add(&self.counts.deleted, deleted.unsigned_abs());
        thread::sleep(Duration::from_millis(random.below(200)));
        Ok(())
    }

    fn check(&self, conn: &mut PgConnection, random: &mut Random) -> Result<()> {
        conn.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
        if random.below(10) == 0 {
            thread::sleep(Duration::from_millis(random.below(1_500)));
        }
        let mut snapshot = Snapshot::new(conn, &self.counts)?;
        for _ in 0..12 {
            snapshot.compare(random)?;
        }
        conn.batch_execute("COMMIT")?;
        Ok(())
    }

    fn inject_faults(&self, server: &mut PrivateServer, end: Instant) {
        for index in 0_u64.. {
            thread::sleep(Duration::from_millis(1_500));
            let is_enough = self.counts.tried_everything() || Instant::now() > end + PATIENCE;
            if Instant::now() > end && is_enough {
                return;
            }
            if index % 6 == 5 {
                let ended = if index % 12 == 5 { server.crash() } else { server.stop() };
                ended.and_then(|()| server.start()).expect("a server that comes back");
                add(&self.counts.crashes, 1);
            } else if let Ok(mut conn) = PgConnection::establish(&self.url) {
                let whose = ["writer", "worker", "retention"][usize::try_from(index % 3).expect("an index")];
                let ended = conn.batch_execute(&format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE application_name = '{whose}' AND random() < 0.5"
                ));
                add(&self.counts.sessions_ended, u64::from(ended.is_ok()));
            }
        }
    }

    /// Counts all calls, and compares again.
    fn finish(&self) {
        let mut conn = PgConnection::establish(&self.url).expect("a connection");
        let until = Utc::now() + TimeDelta::days(9);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let step = KeysDriver::new(&mut conn).roll_up_usage(until, 100_000).expect("a step");
            if step.is_some_and(|step| !step.is_behind && step.counted_to > until - TimeDelta::seconds(1)) {
                break;
            }
            assert!(Instant::now() < deadline, "not counted to the end");
        }
        let mut random = Random(77);
        for _ in 0..30 {
            self.check(&mut conn, &mut random).expect("answers");
        }
        let all = DateTime::<Utc>::MIN_UTC..DateTime::<Utc>::MAX_UTC;
        let drift = KeysDriver::new(&mut conn).fetch_usage_drift(all, 5).expect("an answer");
        if !drift.is_empty() {
            eprintln!("drift: {drift:#?}");
            add(&self.counts.differences, drift.len() as u64);
        }
        let days = diesel::sql_query(
            "SELECT FROM (SELECT tenant_id, api_key_id, date_bin('1 day', start, '2000-01-01 00:00Z') AS day,
                                 sum(calls) FILTER (WHERE is_day) AS a, sum(calls) FILTER (WHERE NOT is_day) AS b,
                                 sum(spend) FILTER (WHERE is_day) AS c, sum(spend) FILTER (WHERE NOT is_day) AS d
                          FROM usage_key_buckets GROUP BY 1, 2, 3) AS sums WHERE (a, c) IS DISTINCT FROM (b, d)",
        );
        add(&self.counts.differences, days.execute(&mut conn).expect("an answer") as u64);
    }
}

#[allow(dead_code, reason = "the test that includes this file has another")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = match &arguments[..] {
        [] => 600,
        [name, seconds] if name == "--seconds" => seconds.parse().expect("a number of seconds"),
        _ => {
            eprintln!("usage: usage_soak [--seconds N]");
            return ExitCode::from(2);
        }
    };
    let counts = fire(Duration::from_secs(seconds));
    print!("{counts}");
    if counts.differences.load(Relaxed) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
