//! Workers change, read and meter keys on a server that restarts, crashes, loses sessions and is held up.
//!
//! `cargo run --release --example soak -- --seconds 120` prints what happened, and fails if a change that
//! was acknowledged is not there, one that was not is, or a connection leaked.

use std::collections::HashMap;
use std::fmt;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::schema::{api_keys, proxy_calls};
use api_keys_driver::{
    Advice, Error, KeyId, KeysDriver, Page, Pool, PoolConfig, Result, TenantId, Timeouts, Transaction,
    migrate,
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::PrivateServer;

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const KEYS: u64 = 6;
const CHANGERS: u64 = 4;
const METERS: u64 = 2;
const POOL: u32 = 6;
const PAUSE: Duration = Duration::from_millis(20);

diesel::table! {
    /// What the changers committed, written in the same transactions as the changes.
    ledger (seq) {
        /// In the order of the locks.
        seq -> BigInt,
        /// The number of the change.
        change -> BigInt,
        /// The key that it changed.
        key_id -> Text,
        /// What it left there.
        frozen_at -> Nullable<Timestamptz>,
    }
}

/// What happened, in the order in which it is printed.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    changes: AtomicU64,
    calls: AtomicU64,
    reads: AtomicU64,
    retries: AtomicU64,
    reconnects: AtomicU64,
    unknown_commits: AtomicU64,
    given_up: AtomicU64,
    sessions_ended: AtomicU64,
    lock_storms: AtomicU64,
    restarts: AtomicU64,
    crashes: AtomicU64,
    lost: AtomicU64,
    unacknowledged: AtomicU64,
    leaked: AtomicU64,
    unexpected: AtomicU64,
}

impl Counts {
    /// Whether every promise was kept, and put to the test.
    pub(crate) fn is_good(&self) -> bool {
        let broken = [&self.lost, &self.unacknowledged, &self.leaked, &self.unexpected];
        let done = [&self.changes, &self.calls, &self.reads, &self.crashes, &self.reconnects];
        broken.iter().all(|count| count.load(Relaxed) == 0)
            && done.iter().all(|count| count.load(Relaxed) > 0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in [
            ("changes acknowledged", &self.changes),
            ("calls acknowledged", &self.calls),
            ("reads answered", &self.reads),
            ("transactions run again", &self.retries),
            ("connections taken anew", &self.reconnects),
            ("commits of unknown outcome", &self.unknown_commits),
            ("changes that did not happen", &self.given_up),
            ("faults: all sessions ended", &self.sessions_ended),
            ("faults: lock storms", &self.lock_storms),
            ("faults: restarts", &self.restarts),
            ("faults: crashes", &self.crashes),
            ("LOST", &self.lost),
            ("there though not acknowledged", &self.unacknowledged),
            ("connections leaked", &self.leaked),
            ("errors nobody expects", &self.unexpected),
        ] {
            writeln!(f, "{name:32} {:>9}", count.load(Relaxed))?;
        }
        Ok(())
    }
}

struct Soak {
    pool: Pool,
    tenant_id: TenantId,
    over: AtomicBool,
    next: AtomicU64,
    /// Whether each change was acknowledged: what is `false` here must not be in the ledger.
    acknowledged: Mutex<HashMap<i64, bool>>,
    counts: Counts,
}

/// Runs the workers and the faults for a while, and checks what is left.
pub(crate) fn soak(length: Duration) -> Counts {
    let mut server = PrivateServer::start_new().expect("a server");
    let database =
        server.create_database().and_then(|database| database.prepare(migrate)).expect("a migrated database");
    set_up(&mut database.connect().expect("a connection"));
    let pool = PoolConfig::new(database.url())
        .size(POOL)
        .wait(Duration::from_secs(1))
        .timeouts(Timeouts { lock: Duration::from_millis(1300), ..Timeouts::default() })
        .application_name("soak")
        .build()
        .expect("a pool");
    let soak = Soak {
        pool,
        tenant_id: TENANT.into(),
        over: AtomicBool::new(false),
        next: AtomicU64::new(0),
        acknowledged: Mutex::default(),
        counts: Counts::default(),
    };
    thread::scope(|scope| {
        for _ in 0..CHANGERS {
            scope.spawn(|| soak.until_over(Soak::change));
        }
        for _ in 0..METERS {
            scope.spawn(|| soak.until_over(Soak::meter));
        }
        scope.spawn(|| soak.until_over(Soak::read));
        soak.inject_faults(&mut server, database.url(), Instant::now() + length);
        soak.over.store(true, Relaxed);
    });
    soak.check(&mut database.connect().expect("a connection"));
    soak.counts
}

fn set_up(conn: &mut PgConnection) {
    conn.batch_execute(&format!(
        "CREATE TABLE ledger (seq bigserial PRIMARY KEY, change bigint NOT NULL, key_id text NOT NULL,
                              frozen_at timestamptz);
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash)
         SELECT n, '{TENANT}', n, '', n FROM generate_series(0, {KEYS} - 1) AS n;
         DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = 20', current_database());
         END $$"
    ))
    .expect("keys");
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Relaxed);
}

impl Soak {
    fn until_over(&self, work: fn(&Self, u64)) {
        while !self.over.load(Relaxed) {
            work(self, self.next.fetch_add(1, Relaxed));
        }
    }

    /// Asks until there is an answer, on one connection after another.
    fn insist<T>(&self, mut ask: impl FnMut(&mut PgConnection) -> Result<T>) -> Option<T> {
        while !self.over.load(Relaxed) {
            let error = match self.pool.get().map_err(Error::from).and_then(|mut conn| ask(&mut conn)) {
                Ok(answer) => return Some(answer),
                Err(error) => error,
            };
            match error.advice() {
                Advice::RetryTransaction => {}
                Advice::Reconnect => add(&self.counts.reconnects),
                Advice::CheckOutcome | Advice::Fail => {
                    eprintln!("unexpected: {error:?}");
                    add(&self.counts.unexpected);
                }
            }
            thread::sleep(PAUSE);
        }
        None
    }

    /// Freezes what is not frozen and unfreezes what is, two keys in one transaction and in any order.
    fn change(&self, n: u64) {
        let change = i64::try_from(n).expect("a small number");
        let now = DateTime::UNIX_EPOCH + TimeDelta::microseconds(change);
        let keys = [n % KEYS, n.wrapping_mul(7) / 3 % KEYS].map(|key| KeyId::from(key.to_string()));
        self.acknowledged.lock().expect("no panic").insert(change, false);
        let mut runs = 0;
        let done = self.insist(|conn| {
            let done = Transaction::attempts(3).run(conn, |conn| {
                runs += 1;
                keys.iter().try_for_each(|key_id| toggle(conn, &self.tenant_id, key_id, change, now))
            });
            match done {
                Err(error) if error.advice() == Advice::CheckOutcome => {
                    add(&self.counts.unknown_commits);
                    self.happened(change)
                }
                done => done.map(|()| true),
            }
        });
        self.counts.retries.fetch_add(u64::saturating_sub(runs, 1), Relaxed);
        match done {
            Some(true) => {
                self.acknowledged.lock().expect("no panic").insert(change, true);
                add(&self.counts.changes);
            }
            // Looked for and not there, or out of time: it must not turn up later.
            Some(false) | None => add(&self.counts.given_up),
        }
    }

    /// Looks until it is known whether a change was committed: also after the end, so as to know.
    fn happened(&self, change: i64) -> Result<bool> {
        loop {
            let ask = |conn: &mut PgConnection| {
                let there = ledger::table.filter(ledger::change.eq(change));
                Ok(diesel::select(diesel::dsl::exists(there)).get_result(conn)?)
            };
            match self.pool.get().map_err(Error::from).and_then(|mut conn| ask(&mut conn)) {
                Err(error) if error.advice() == Advice::Reconnect => thread::sleep(PAUSE),
                known => return known,
            }
        }
    }

    /// Records a call under an id of its own, so that to record it again changes nothing.
    fn meter(&self, n: u64) {
        let recorded = self.insist(|conn| {
            diesel::insert_into(proxy_calls::table)
                .values((
                    proxy_calls::id.eq(n.to_string()),
                    proxy_calls::tenant_id.eq(TENANT),
                    proxy_calls::api_key_id.eq((n % KEYS).to_string()),
                    proxy_calls::endpoint.eq(""),
                    proxy_calls::model.eq(""),
                    proxy_calls::request_hash.eq(""),
                    proxy_calls::request_json.eq("{}"),
                ))
                .on_conflict_do_nothing()
                .execute(conn)?;
            Ok(())
        });
        if recorded.is_some() {
            add(&self.counts.calls);
        }
    }

    fn read(&self, n: u64) {
        let key_id = KeyId::from((n % KEYS).to_string());
        let read = self.insist(|conn| {
            let mut keys = KeysDriver::new(conn);
            let key = keys.fetch_key_by_id(&self.tenant_id, &key_id)?;
            let page = keys.fetch_keys(&self.tenant_id, Page::default())?;
            Ok(key.is_some_and(|key| key.is_frozen == key.frozen_at.is_some()) && page.len() as u64 == KEYS)
        });
        match read {
            Some(true) => add(&self.counts.reads),
            Some(false) => add(&self.counts.unexpected),
            None => {}
        }
    }

    fn inject_faults(&self, server: &mut PrivateServer, url: &str, end: Instant) {
        let faults = [Self::end_sessions, Self::hold_up, Self::crash, Self::end_sessions, Self::restart];
        for fault in faults.iter().cycle() {
            thread::sleep(Duration::from_millis(250));
            if Instant::now() > end {
                return;
            }
            fault(self, server, url);
        }
    }

    fn end_sessions(&self, _: &mut PrivateServer, url: &str) {
        PgConnection::establish(url)
            .and_then(|mut conn| {
                conn.batch_execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'soak'",
                )
                .map_err(ConnectionError::CouldntSetupConfiguration)
            })
            .expect("sessions to end");
        add(&self.counts.sessions_ended);
    }

    /// Holds every key for longer than a worker waits.
    fn hold_up(&self, _: &mut PrivateServer, url: &str) {
        let mut conn = PgConnection::establish(url).expect("a connection");
        conn.batch_execute("BEGIN; SELECT FROM api_keys FOR UPDATE; SELECT pg_sleep(1.5); COMMIT")
            .or_else(|_| conn.batch_execute("ROLLBACK"))
            .expect("a lock on every key, or a deadlock");
        add(&self.counts.lock_storms);
    }

    fn restart(&self, server: &mut PrivateServer, _: &str) {
        server.stop().and_then(|()| server.start()).expect("a restart");
        add(&self.counts.restarts);
    }

    fn crash(&self, server: &mut PrivateServer, _: &str) {
        server.crash().and_then(|()| server.start()).expect("a recovery");
        add(&self.counts.crashes);
    }

    /// Compares the database with what the workers were told.
    fn check(&self, conn: &mut PgConnection) {
        let entries: Vec<(i64, String, Option<DateTime<Utc>>)> = ledger::table
            .order(ledger::seq)
            .select((ledger::change, ledger::key_id, ledger::frozen_at))
            .load(conn)
            .expect("the ledger");
        let keys: Vec<(String, Option<DateTime<Utc>>)> =
            api_keys::table.select((api_keys::id, api_keys::frozen_at)).load(conn).expect("the keys");

        // Of each key, the changes alternate, and the last one is what the key shows.
        for (id, frozen_at) in keys {
            let own: Vec<_> = entries.iter().filter(|entry| entry.1 == id).map(|entry| entry.2).collect();
            let out_of_turn = own.iter().enumerate().filter(|(n, frozen)| frozen.is_some() == (n % 2 == 1));
            self.counts.lost.fetch_add(out_of_turn.count() as u64, Relaxed);
            if own.last().copied().flatten() != frozen_at {
                add(&self.counts.lost);
            }
        }
        for (change, acknowledged) in &*self.acknowledged.lock().expect("no panic") {
            let rows = entries.iter().filter(|entry| entry.0 == *change).count();
            match (acknowledged, rows) {
                (true, 2) | (false, 0) => {}
                (true, _) => add(&self.counts.lost),
                (false, _) => add(&self.counts.unacknowledged),
            }
        }
        let calls: i64 = proxy_calls::table.count().get_result(conn).expect("the calls");
        let acknowledged = self.counts.calls.load(Relaxed);
        self.counts.lost.fetch_add(acknowledged.saturating_sub(calls.unsigned_abs()), Relaxed);

        let state = self.pool.state();
        let held = state.connections - state.idle_connections;
        let in_transaction = diesel::sql_query(
            "SELECT FROM pg_stat_activity WHERE application_name = 'soak' AND state <> 'idle'",
        );
        let busy = in_transaction.execute(conn).expect("the sessions");
        let sessions = diesel::sql_query("SELECT FROM pg_stat_activity WHERE application_name = 'soak'");
        let too_many = sessions.execute(conn).expect("the sessions").saturating_sub(POOL as usize);
        self.counts.leaked.fetch_add(u64::from(held) + busy as u64 + too_many as u64, Relaxed);
    }
}

fn toggle(
    conn: &mut PgConnection,
    tenant_id: &TenantId,
    key_id: &KeyId,
    change: i64,
    now: DateTime<Utc>,
) -> Result<()> {
    let mut keys = KeysDriver::new(conn);
    let locked = keys.fetch_key_for_update(tenant_id, key_id)?.expect("the key");
    let changed = if locked.is_frozen {
        keys.update_key_unfrozen(locked)
    } else {
        keys.update_key_frozen(locked, now)
    }?;
    diesel::insert_into(ledger::table)
        .values((
            ledger::change.eq(change),
            ledger::key_id.eq(key_id.as_str()),
            ledger::frozen_at.eq(changed.frozen_at),
        ))
        .execute(keys.connection())?;
    Ok(())
}

#[allow(dead_code, reason = "the test that includes this file has another")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = match &arguments[..] {
        [] => 120,
        [name, seconds] if name == "--seconds" => seconds.parse().expect("a number of seconds"),
        _ => {
            eprintln!("usage: soak [--seconds N]");
            return ExitCode::from(2);
        }
    };
    let counts = soak(Duration::from_secs(seconds));
    print!("{counts}");
    if counts.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
