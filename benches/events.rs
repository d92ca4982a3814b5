//! The cost of the triggers of events for a writer, compared with the same table without them, and the cost of
//! notifications. `cargo bench --bench events` prints the tables of `docs/events.md`. `-- --notifications URL` measures
//! only notifications and a follower, on the server of that URL, such as one that waits for its disk.

use std::error::Error;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::{
    DeniedKeys, KeyEventListener, KeyHash, KeyId, KeyUse, KeysDriver, NewKey, Result, TenantId, migrate,
};
use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Integer;
use throwaway_postgres::{Database, PrivateServer, Server};

const KEYS: usize = 10_000;
const BATCH: usize = 1000;
const CLIENTS: usize = 8;

/// One of the databases that are compared, and a session on it.
struct Variant {
    name: &'static str,
    database: Database,
    conn: PgConnection,
    backend: i32,
    turn: usize,
}

const WORLDS: [(&str, &str); 3] = [
    ("without the triggers", "ALTER TABLE api_keys DISABLE TRIGGER USER"),
    (
        "with them, path not pinned",
        "ALTER FUNCTION api_keys_compare() RESET ALL; ALTER FUNCTION api_keys_number() RESET ALL;
         ALTER FUNCTION api_keys_tell() RESET ALL",
    ),
    ("with them", ""),
];

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--notifications") {
        let url = arguments.get(at + 1).ok_or("--notifications needs the URL of a server")?;
        let database = Server::at(url)?.create_database()?;
        let mut variant = Variant::new(database, "on the server of the URL", "")?;
        notifications(&mut variant)?;
        return following(&mut variant);
    }
    let server = PrivateServer::start_new()?;
    let mut variants = Vec::new();
    for (name, change) in WORLDS {
        variants.push(Variant::new(server.create_database()?, name, change)?);
    }
    println!("| | {} |", WORLDS.map(|(name, _)| name).join(" | "));
    println!("|---|{}", "---|".repeat(WORLDS.len()));
    measure("a batch of 1,000 uses", &mut variants, 60, Variant::use_batch);
    measure("a use, by the service's own statement", &mut variants, 2000, Variant::use_one);
    measure("an insert", &mut variants, 2000, Variant::insert);
    measure("lock, freeze or unfreeze, commit", &mut variants, 2000, Variant::freeze);
    println!();
    notifications(&mut variants[2])?;
    following(&mut variants[2])?;
    Ok(())
}

/// Interleaves the databases, so that other load on the machine affects all of them.
fn measure(what: &str, variants: &mut [Variant], rounds: usize, work: fn(&mut Variant)) {
    let mut walls = vec![Vec::new(); variants.len()];
    let mut cpu = vec![Vec::new(); variants.len()];
    for round in 0..rounds + rounds / 10 {
        for (index, variant) in variants.iter_mut().enumerate() {
            let (began, spent) = (Instant::now(), variant.cpu_time());
            work(variant);
            if round >= rounds / 10 {
                walls[index].push(began.elapsed());
                cpu[index].push(variant.cpu_time().saturating_sub(spent));
            }
        }
    }
    let (walls, cpu): (Vec<_>, Vec<_>) = (medians(walls), medians(cpu));
    let cells: Vec<_> = walls
        .iter()
        .zip(&cpu)
        .map(|(wall, time)| {
            let ratio = |now: &Duration, first: &Duration| now.as_secs_f64() / first.as_secs_f64();
            format!(
                "{:.0} us ({:.2}), server {:.0} us ({:.2})",
                wall.as_secs_f64() * 1e6,
                ratio(wall, &walls[0]),
                time.as_secs_f64() * 1e6,
                ratio(time, &cpu[0])
            )
        })
        .collect();
    println!("| {what} | {} |", cells.join(" | "));
}

fn medians(times: Vec<Vec<Duration>>) -> Vec<Duration> {
    times
        .into_iter()
        .map(|mut times| {
            times.sort();
            times[times.len() / 2]
        })
        .collect()
}

impl Variant {
    fn new(empty: Database, name: &'static str, change: &str) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let database = empty.prepare(migrate)?;
        let mut conn = database.connect()?;
        conn.batch_execute(&format!(
            "ALTER TABLE api_keys SET (fillfactor = 50);
             INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, permissions_json, created_at)
             SELECT 'key ' || n, 'tenant', 'Production key', 'sk-live-abcd', md5(n::text) || md5(n::text),
                 '[\"chat\",\"embed\"]', '2026-01-01Z' FROM generate_series(0, {KEYS} - 1) AS n;
             {change}"
        ))?;
        conn.batch_execute("VACUUM ANALYZE api_keys, api_key_events")?;
        let pid = diesel::dsl::sql::<Integer>("pg_backend_pid()");
        let backend = diesel::select(pid).get_result(&mut conn)?;
        Ok(Self { name, database, conn, backend, turn: 0 })
    }

    /// The processor time of the session's server process.
    fn cpu_time(&self) -> Duration {
        cpu_time(&self.backend.to_string())
    }

    fn next(&mut self) -> usize {
        self.turn += 1;
        self.turn
    }

    fn use_batch(&mut self) {
        let start = self.next() * BATCH;
        let uses: Vec<_> = (0..BATCH)
            .map(|n| KeyUse { tenant_id: tenant(), key_id: key((start + n * 7) % KEYS), count: 1, at: now() })
            .collect();
        KeysDriver::new(&mut self.conn).record_key_uses(&uses).expect("uses");
    }

    fn use_one(&mut self) {
        let n = self.next() * 31 % KEYS;
        let used = format!(
            "UPDATE api_keys SET last_used_at = now(), total_requests = total_requests + 1 WHERE id = 'key {n}'"
        );
        self.conn.batch_execute(&used).expect("a use");
    }

    fn insert(&mut self) {
        let id = format!("new {}", self.next());
        let key = NewKey::new(
            tenant(),
            KeyId::from(&*id),
            "Production",
            "sk-live-abcd",
            KeyHash::from(&*id),
            now(),
        );
        KeysDriver::new(&mut self.conn).insert_key(&key).expect("a key");
    }

    fn freeze(&mut self) {
        let key_id = key(self.next() * 31 % KEYS);
        toggle(&mut self.conn, &key_id);
    }
}

fn toggle(conn: &mut PgConnection, key_id: &KeyId) {
    let done: Result<()> = conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let locked = keys.fetch_key_for_update(&tenant(), key_id)?.expect("a key");
        if locked.is_frozen {
            keys.update_key_unfrozen(locked)?;
        } else {
            keys.update_key_frozen(locked, now())?;
        }
        Ok(())
    });
    done.expect("a freeze");
}

/// The changes per second of a number of clients, each with its own keys.
fn throughput(variant: &Variant) -> f64 {
    const SECONDS: f64 = 1.5;
    let (changes, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (mut conn, changes, is_over) =
                (variant.database.connect().expect("a connection"), &changes, &is_over);
            scope.spawn(move || {
                let mut index = client;
                while !is_over.load(Ordering::Relaxed) {
                    toggle(&mut conn, &key(index % KEYS));
                    index += CLIENTS;
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(Duration::from_secs_f64(SECONDS));
        is_over.store(true, Ordering::Relaxed);
    });
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = changes.load(Ordering::Relaxed) as f64 / SECONDS;
    rate
}

/// The cost of notifications for writers: 8 clients, alternately with and without.
fn notifications(variant: &mut Variant) -> Result<(), Box<dyn Error + Send + Sync>> {
    println!(
        "| {CLIENTS} clients that freeze and unfreeze, changes a second ({}) | quiet | notifying |",
        variant.name
    );
    println!("|---|---|---|");
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..7 {
        for (rates, state) in rates.iter_mut().zip(["DISABLE", "ENABLE"]) {
            variant.conn.batch_execute(&format!(
                "ALTER TABLE api_key_events {state} TRIGGER api_key_events_notify"
            ))?;
            rates.push(throughput(variant));
        }
    }
    for rates in &mut rates {
        rates.sort_by(f64::total_cmp);
    }
    let [quiet, notifying] = rates.map(|rates| rates[rates.len() / 2]);
    println!("| median of 7 runs | {quiet:.0} | {notifying:.0} ({:.2}) |", notifying / quiet);
    println!();
    Ok(())
}

/// The cost of a follower while nothing changes, and the delay until it gets a change.
fn following(variant: &mut Variant) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut follower = variant.database.connect()?;
    let mut listener = KeyEventListener::new(&mut follower)?;
    let mut denied = DeniedKeys::seed(listener.connection())?;
    denied.catch_up(listener.connection())?;
    let mut polls: Vec<_> = (0..500)
        .map(|_| {
            let began = Instant::now();
            denied.catch_up(listener.connection()).map(|_| began.elapsed())
        })
        .collect::<Result<_>>()?;
    polls.sort();
    let mut delays = Vec::new();
    for n in 0..100 {
        toggle(&mut variant.conn, &key(n));
        let began = Instant::now();
        while denied.catch_up(listener.connection())?.events == 0 {
            listener.wait(Duration::from_secs(1))?;
        }
        delays.push(began.elapsed());
    }
    delays.sort();
    println!("| a follower | p50 | p99 |");
    println!("|---|---|---|");
    println!("| a poll that finds nothing | {:?} | {:?} |", polls[250], polls[495]);
    println!("| from the commit to the cache, notified | {:?} | {:?} |", delays[50], delays[99]);

    let (began, spent) = (Instant::now(), cpu_time("thread-self"));
    while began.elapsed() < Duration::from_secs(20) {
        listener.wait(Duration::from_secs(5))?;
    }
    let spent = cpu_time("thread-self").saturating_sub(spent);
    println!(
        "| a second of waiting, processor of the client | {:?} | |",
        spent.div_f64(began.elapsed().as_secs_f64())
    );
    Ok(())
}

/// The processor time of a process or thread, from the scheduler. Zero if the system does not provide it.
fn cpu_time(of: &str) -> Duration {
    let told = fs::read_to_string(format!("/proc/{of}/schedstat")).unwrap_or_default();
    Duration::from_nanos(told.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or_default())
}

fn tenant() -> TenantId {
    TenantId::from("tenant")
}

fn key(n: usize) -> KeyId {
    KeyId::from(format!("key {n}"))
}

fn now() -> DateTime<Utc> {
    Utc::now()
}
