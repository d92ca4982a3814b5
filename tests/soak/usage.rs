//! Usage under fire: writers of every kind, workers that count, merge, recount and delete, sessions that are ended and a
//! server that crashes; and checkers that compare every method with the plain sum over the calls, in one snapshot.
//!
//! `cargo run --release --example usage_soak -- --seconds 600` prints what was done, and fails on the first difference that
//! it counted.

use std::fmt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::{
    BigDecimal, Bucket, Error, KeyId, KeyUsageSnapshot, KeysDriver, Page, Result, TenantId,
};
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Numeric, Text, Timestamptz};
use throwaway_postgres::PrivateServer;

const TENANTS: [&str; 2] = ["a", "b"];
const KEYS: u64 = 6;
const WRITERS: u64 = 6;
const CHECKERS: u64 = 3;
/// It goes on for a while until so many sums are compared.
const ENOUGH: u64 = 10_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Comparisons are of sums: a page or a series is several.
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

/// A small generator: what matters is that it differs by thread.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).expect("an index")]
    }

    /// Seconds before now, to the microsecond; some are in the future.
    fn age(&mut self) -> TimeDelta {
        let seconds = match self.below(20) {
            0..10 => 0,
            10..14 => self.below(120),
            14..16 => self.below(7_200),
            16..19 => self.below(40 * 86_400),
            _ => return -TimeDelta::microseconds(i64::try_from(self.below(86_400_000_000)).expect("small")),
        };
        TimeDelta::microseconds(i64::try_from(seconds * 1_000_000 + self.below(1_000_000)).expect("small"))
    }

    fn moment(&mut self) -> DateTime<Utc> {
        let moment = Utc::now() - if self.below(3) == 0 { TimeDelta::seconds(0) } else { self.age() };
        let moment = match self.below(8) {
            0 => moment.duration_trunc(TimeDelta::minutes(15)).expect("a quarter hour"),
            1 => moment.duration_trunc(TimeDelta::days(1)).expect("a day"),
            _ => moment,
        };
        DateTime::from_timestamp_micros(moment.timestamp_micros()).expect("a time")
    }

    fn tenant(&mut self) -> &'static str {
        self.of(&TENANTS)
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
        // In one transaction, as nobody should: right all the same.
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
            let is_enough = self.counts.compared.load(Relaxed) > ENOUGH;
            if Instant::now() > end && is_enough || Instant::now() > end + PATIENCE {
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

    /// Counts all that is there, and compares again.
    fn finish(&self) {
        let mut conn = PgConnection::establish(&self.url).expect("a connection");
        let until = Utc::now() + TimeDelta::days(9);
        let deadline = Instant::now() + Duration::from_secs(60);
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

/// A statement of some writer.
fn statement(random: &mut Random) -> String {
    let columns =
        "(id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)";
    let some = |random: &mut Random| {
        let rows = random.of(&[1, 1, 5, 40]);
        format!(
            "ctid = ANY (ARRAY(SELECT ctid FROM proxy_calls TABLESAMPLE SYSTEM (5) LIMIT {rows} FOR UPDATE SKIP LOCKED))"
        )
    };
    match random.below(100) {
        0..50 => {
            let rows: Vec<_> =
                (0..random.of(&[1, 1, 1, 3, 20])).map(|_| row(random, "gen_random_uuid()::text")).collect();
            format!("INSERT INTO proxy_calls {columns} VALUES {}", rows.join(", "))
        }
        50..58 => {
            let id = format!("'u{}'", random.below(300));
            let action = random.of(&[
                "NOTHING",
                "UPDATE SET cost_cents = excluded.cost_cents",
                "UPDATE SET status_code = 1",
                "UPDATE SET cost_cents = coalesce(proxy_calls.cost_cents, 0) + 1, created_at = excluded.created_at",
            ]);
            format!(
                "INSERT INTO proxy_calls {columns} VALUES {} ON CONFLICT (id) DO {action}",
                row(random, &id)
            )
        }
        58..74 => {
            let change = random.of(&[
                "cost_cents = 3.5",
                "cost_cents = NULL, api_key_id = tenant_id || '1'",
                "status_code = 200",
                "created_at = created_at - interval '20 minutes'",
                "created_at = created_at + interval '7 minutes'",
                "tenant_id = 'b', api_key_id = 'b2'",
                "api_key_id = NULL",
                "response_json = '{}'",
                "cost_cents = CASE WHEN cost_cents = 'NaN' THEN 1 ELSE cost_cents END",
            ]);
            format!("UPDATE proxy_calls SET {change} WHERE {}", some(random))
        }
        74..88 => format!("DELETE FROM proxy_calls WHERE {}", some(random)),
        88..96 => format!(
            "CREATE TEMP TABLE IF NOT EXISTS batch (LIKE proxy_calls); TRUNCATE batch;
             INSERT INTO batch {columns} VALUES {}, {}; INSERT INTO proxy_calls SELECT * FROM batch",
            row(random, "gen_random_uuid()::text"),
            row(random, "gen_random_uuid()::text")
        ),
        // From a program, because a batch of statements carries no rows.
        _ => format!(
            "COPY proxy_calls {columns} FROM PROGRAM 'for i in 1 2 3 4 5; do echo \"copied-{}-$i,{tenant},{tenant}{},e,m,h,j,{},{}\"; done' (FORMAT csv)",
            random.below(u64::MAX),
            random.below(KEYS),
            random.below(9),
            (Utc::now() - random.age()).to_rfc3339(),
            tenant = random.tenant(),
        ),
    }
}

fn row(random: &mut Random, id: &str) -> String {
    let tenant = random.tenant();
    let key = if random.below(30) == 0 { "NULL".into() } else { format!("'{tenant}{}'", random.below(KEYS)) };
    let cost = match random.below(200) {
        0..20 => "NULL".to_owned(),
        20 if tenant == "b" && key == "'b5'" => "'NaN'".to_owned(),
        n => format!("{}.{:04}", n % 20, random.below(10_000)),
    };
    let age = random.age().num_microseconds().expect("small");
    format!(
        "({id}, '{tenant}', {key}, 'e', 'm', 'h', '{{}}', {cost}, clock_timestamp() - {age} * interval '1 microsecond')"
    )
}

/// What the calls of a snapshot add up to.
#[derive(Debug, Default, QueryableByName)]
struct Plain {
    #[diesel(sql_type = Nullable<Text>)]
    api_key_id: Option<String>,
    #[diesel(sql_type = BigInt)]
    calls: i64,
    #[diesel(sql_type = Nullable<Numeric>)]
    spend: Option<BigDecimal>,
    #[diesel(sql_type = BigInt)]
    nan: i64,
}

struct Snapshot<'a> {
    conn: &'a mut PgConnection,
    counts: &'a Counts,
    deleted_to: DateTime<Utc>,
}

impl<'a> Snapshot<'a> {
    fn new(conn: &'a mut PgConnection, counts: &'a Counts) -> Result<Self> {
        let deleted_to = diesel::dsl::sql::<Timestamptz>(
            "SELECT greatest(deleted_to, '1970-01-01 00:00Z') FROM usage_retention",
        );
        let deleted_to = deleted_to.get_result(conn)?;
        Ok(Self { conn, counts, deleted_to })
    }

    fn is_rounded(&self, end: DateTime<Utc>) -> bool {
        end < self.deleted_to && end.duration_trunc(TimeDelta::minutes(15)).expect("a quarter hour") != end
    }

    fn moved(&self, end: DateTime<Utc>) -> DateTime<Utc> {
        if self.is_rounded(end) {
            end.duration_trunc(TimeDelta::minutes(15)).expect("a quarter hour")
        } else {
            end
        }
    }

    fn plain(
        &mut self,
        tenant: &str,
        whose: &str,
        from: DateTime<Utc>,
        to: Option<DateTime<Utc>>,
    ) -> Result<Vec<Plain>> {
        let (from, to) = (self.moved(from), to.map(|to| self.moved(to)));
        let to = to.map_or("'infinity'".to_owned(), |to| format!("'{to}'"));
        let rows = diesel::sql_query(format!(
            "SELECT {whose} AS api_key_id, count(*) AS calls, count(*) FILTER (WHERE cost_cents = 'NaN') AS nan,
                    sum(cost_cents) FILTER (WHERE cost_cents <> 'NaN') AS spend
             FROM every_call WHERE tenant_id = '{tenant}' AND created_at >= '{from}' AND created_at < {to} GROUP BY 1"
        ));
        Ok(rows.load(self.conn)?)
    }

    fn of_key(
        &mut self,
        tenant: &str,
        key: &str,
        from: DateTime<Utc>,
        to: Option<DateTime<Utc>>,
    ) -> Result<Plain> {
        let (moved, end) = (self.moved(from), to.map(|to| self.moved(to)));
        let end = end.map_or("'infinity'".to_owned(), |to| format!("'{to}'"));
        let row = diesel::sql_query(format!(
            "SELECT NULL AS api_key_id, count(*) AS calls, count(*) FILTER (WHERE cost_cents = 'NaN') AS nan,
                    sum(cost_cents) FILTER (WHERE cost_cents <> 'NaN') AS spend
             FROM every_call WHERE tenant_id = '{tenant}' AND api_key_id = '{key}' AND created_at >= '{moved}' AND created_at < {end}"
        ));
        Ok(row.get_result(self.conn)?)
    }

    fn compare(&mut self, random: &mut Random) -> Result<()> {
        let tenant = random.tenant();
        let (tenant_id, key) = (TenantId::from(tenant), format!("{tenant}{}", random.below(KEYS + 1)));
        let key_id = KeyId::from(key.as_str());
        let since = random.moment();
        match random.below(6) {
            0 => {
                let answer = KeysDriver::new(self.conn).fetch_key_usage(&tenant_id, &key_id, since);
                let plain = self.of_key(tenant, &key, since, None)?;
                self.judge(answer, &plain, self.is_rounded(since), &format!("{key} since {since}"))
            }
            1 => {
                let answer = KeysDriver::new(self.conn).fetch_tenant_usage(&tenant_id, since);
                let plain = self.plain(tenant, "NULL", since, None)?;
                let none = Plain::default();
                self.judge(
                    answer,
                    plain.first().unwrap_or(&none),
                    self.is_rounded(since),
                    &format!("{tenant} since {since}"),
                )
            }
            2 => {
                let mut boundaries: Vec<_> = (0..2 + random.below(6)).map(|_| random.moment()).collect();
                boundaries.sort();
                let answer =
                    KeysDriver::new(self.conn).fetch_key_usage_between(&tenant_id, &key_id, &boundaries);
                self.compare_sums(tenant, &key, &boundaries, answer)
            }
            3 => {
                let (bucket, step) =
                    random.of(&[(Bucket::Hour, TimeDelta::hours(1)), (Bucket::Day, TimeDelta::days(1))]);
                let end = since + step * i32::try_from(1 + random.below(5)).expect("small");
                let answer = KeysDriver::new(self.conn).fetch_key_usage_series(
                    &tenant_id,
                    &key_id,
                    since..end,
                    bucket,
                );
                let mut boundaries = vec![since];
                let mut next = since.duration_trunc(step).expect("a bucket") + step;
                while next < end {
                    boundaries.push(next);
                    next += step;
                }
                boundaries.push(end);
                let answer = answer.map(|buckets| buckets.into_iter().map(|bucket| bucket.usage).collect());
                self.compare_sums(tenant, &key, &boundaries, answer)
            }
            4 => {
                let answer =
                    KeysDriver::new(self.conn).fetch_keys_with_usage(&tenant_id, since, Page::default());
                let plain = self.plain(tenant, "api_key_id", since, None)?;
                let own = |id: &str| plain.iter().find(|row| row.api_key_id.as_deref() == Some(id));
                match answer {
                    Ok(page) => {
                        assert_eq!(page.len() as u64, KEYS - 1);
                        for (key, usage) in page {
                            let none = Plain::default();
                            let plain = own(key.id.as_str()).unwrap_or(&none);
                            self.judge(
                                Ok(usage),
                                plain,
                                self.is_rounded(since),
                                &format!("page, {} since {since}", key.id),
                            )?;
                        }
                        Ok(())
                    }
                    Err(error) => self.judge_refusal(error, plain.iter().any(|row| row.nan > 0)),
                }
            }
            _ => self.compare_keys(tenant, since, since.max(random.moment())),
        }
    }

    fn compare_keys(&mut self, tenant: &str, since: DateTime<Utc>, to: DateTime<Utc>) -> Result<()> {
        let answer =
            KeysDriver::new(self.conn).fetch_tenant_usage_by_key(&TenantId::from(tenant), since..to, 100);
        let plain = self.plain(tenant, "api_key_id", since, Some(to))?;
        let plain: Vec<_> = plain.into_iter().filter(|row| row.api_key_id.is_some()).collect();
        let is_rounded = self.is_rounded(since) || self.is_rounded(to);
        match answer {
            Ok(keys) => {
                let told = format!("keys of {tenant} in {since}..{to}");
                let in_order = keys.is_sorted_by(|one, next| one.1.spend_cents >= next.1.spend_cents);
                if keys.len() != plain.len() || !in_order {
                    self.differ(&format!("{told}: {keys:?}, plain {plain:?}"));
                }
                for (key, usage) in keys {
                    let own = plain.iter().find(|row| row.api_key_id.as_deref() == Some(key.as_str()));
                    let none = Plain::default();
                    self.judge(Ok(usage), own.unwrap_or(&none), is_rounded, &format!("{told}: {key}"))?;
                }
                Ok(())
            }
            Err(error) => self.judge_refusal(error, plain.iter().any(|row| row.nan > 0)),
        }
    }

    fn compare_sums(
        &mut self,
        tenant: &str,
        key: &str,
        boundaries: &[DateTime<Utc>],
        answer: Result<Vec<KeyUsageSnapshot>>,
    ) -> Result<()> {
        let mut plain = Vec::new();
        for pair in boundaries.windows(2) {
            plain.push(self.of_key(tenant, key, pair[0], Some(pair[1]))?);
        }
        match answer {
            Ok(sums) => {
                assert_eq!(sums.len(), plain.len());
                for ((sum, plain), pair) in sums.into_iter().zip(plain).zip(boundaries.windows(2)) {
                    let is_rounded = self.is_rounded(pair[0]) || self.is_rounded(pair[1]);
                    self.judge(Ok(sum), &plain, is_rounded, &format!("{key} in {}..{}", pair[0], pair[1]))?;
                }
                Ok(())
            }
            Err(error) => self.judge_refusal(error, plain.iter().any(|row| row.nan > 0)),
        }
    }

    fn judge(
        &mut self,
        answer: Result<KeyUsageSnapshot>,
        plain: &Plain,
        is_rounded: bool,
        told: &str,
    ) -> Result<()> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return self.judge_refusal(error, plain.nan > 0),
        };
        add(&self.counts.compared, 1);
        add(&self.counts.not_zero, u64::from(plain.calls > 0));
        add(&self.counts.rounded, u64::from(is_rounded));
        let spend = plain.spend.clone().unwrap_or_default();
        if (answer.request_count, &answer.spend_cents, answer.is_rounded, 0)
            != (plain.calls, &spend, is_rounded, plain.nan)
        {
            self.differ(&format!("{told}: {answer:?}, plain {plain:?}"));
        }
        Ok(())
    }

    fn judge_refusal(&self, error: Error, has_nan: bool) -> Result<()> {
        if !matches!(error, Error::CostNotANumber { .. }) {
            return Err(error);
        }
        add(&self.counts.compared, 1);
        add(&self.counts.not_a_number, 1);
        if !has_nan {
            self.differ(&format!("{error}, and there is no such call"));
        }
        Ok(())
    }

    fn differ(&self, told: &str) {
        eprintln!("{told}");
        add(&self.counts.differences, 1);
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
