//! Measures this crate beside its peers, and as its tables grow, and writes docs/benchmarks.md.
//!
//! `cargo bench` from the crate's root runs it. `--quick` times each operation for a tenth of the time;
//! `--full` loads up to 1,000,000 keys of a tenant and 10,000,000 calls of a key; `--no-write` only prints;
//! `--only <words>` times the operations whose name holds them, and prints those.

mod answer;
mod chart;
mod contender;
mod contenders;
mod data;
mod decode;
mod instructions;
mod libpq;
mod ours;
mod plain_diesel;
mod postgres_crate;
mod report;
mod scaling;
mod sql;
mod sqlx_crate;
mod timing;

use std::cell::Cell;
use std::time::Duration;

use api_keys_driver::{KeyId, KeyUse, TenantId};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::PgConnection;
use diesel::r2d2::{ConnectionManager, Pool};

use crate::answer::{Answer, Plain};
use crate::contender::{Contender, Prefix};
use crate::data::{Sizes, TENANT_KEYS, called, key, now, tenant};
use crate::timing::{Spinners, Timing};

/// An operation, and what each contender took for it in each run.
pub struct Row {
    pub operation: &'static str,
    pub runs: Vec<Vec<Timing>>,
}

impl Row {
    /// The median over the runs of what a run says.
    pub fn median(&self, said: impl Fn(&[Timing]) -> f64) -> f64 {
        let mut said: Vec<f64> = self.runs.iter().map(|run| said(run)).collect();
        said.sort_by(f64::total_cmp);
        said[said.len() / 2]
    }
}

/// Threads, calls a second of this crate through a pool, and of libpq with a connection a thread.
pub struct Threads {
    pub threads: usize,
    pub pooled: f64,
    pub libpq: f64,
}

/// Instructions a call, a contender each.
pub struct Instructions {
    pub operation: &'static str,
    pub counts: Vec<Option<u64>>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [calls, url, name, operation, times] = &arguments[..]
        && calls == "calls"
    {
        return instructions::run(url, name, operation, times.parse().expect("a number"));
    }
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let sizes = if has("--full") {
        Sizes {
            keys: vec![1_000, 10_000, 100_000, 1_000_000],
            calls: vec![10_000, 100_000, 1_000_000, 10_000_000],
        }
    } else {
        Sizes { keys: vec![1_000, 10_000, 100_000], calls: vec![10_000, 100_000, 500_000] }
    };
    let budget = Duration::from_millis(if has("--quick") { 400 } else { 4_000 });

    let database = throwaway_postgres::empty()
        .and_then(|empty| empty.prepare(api_keys_driver::migrate))
        .expect("a throwaway server");
    let url = database.url();
    eprintln!("loading {:?} keys of a tenant, {:?} calls of a key", sizes.keys, sizes.calls);
    data::load(url, &sizes);

    if let Some(at) = arguments.iter().position(|argument| argument == "--only") {
        let words = arguments.get(at + 1).expect("--only <words>");
        let _spinners = Spinners::start();
        return print!("{}", report::peers(&race_peers(url, budget, words)));
    }
    eprintln!("counting instructions");
    let instructions = instructions::OPERATIONS.map(|operation| Instructions {
        operation,
        counts: contenders::NAMES.iter().map(|name| instructions::count(url, name, operation)).collect(),
    });
    let spinners = Spinners::start();
    let rows = race_peers(url, budget, "");
    let threads = race_threads(url, budget / 8);
    eprintln!("timing by size");
    let by_keys = scaling::by_keys(url, &sizes, budget / 8);
    let by_calls = scaling::by_calls(url, &sizes, budget / 8);
    drop(spinners);

    let report = report::Report {
        server: report::server_version(url),
        rows: &rows,
        threads: &threads,
        instructions: &instructions,
        sizes: &sizes,
        by_keys: &by_keys,
        by_calls: &by_calls,
        full: has("--full"),
    };
    println!("{}", report.markdown());
    if !has("--no-write") {
        report.write();
    }
}

type Operation<'a> = (&'static str, Box<dyn Fn(&mut dyn Contender) -> String + 'a>);

/// What the operations are called with.
struct Inputs {
    tenant_id: TenantId,
    /// A key of it.
    key_id: KeyId,
    prefix: Prefix,
    /// Uses of a hundred keys of the tenant.
    uses: Vec<KeyUse>,
    /// A key with 20 calls.
    cold: KeyId,
    /// A tenant, and a key of it with many calls.
    caller: TenantId,
    busy: KeyId,
    since: DateTime<Utc>,
    /// The hours from then on.
    hours: Vec<DateTime<Utc>>,
}

impl Inputs {
    fn new() -> Self {
        let (tenant_id, since) = (tenant(TENANT_KEYS), now() - TimeDelta::days(1));
        let used = |index: u32| KeyUse {
            tenant_id: tenant_id.clone(),
            key_id: key(TENANT_KEYS, 500 * index),
            count: 1,
            at: now(),
        };
        Self {
            key_id: key(TENANT_KEYS, TENANT_KEYS / 2),
            prefix: Prefix { tenant_id: tenant_id.clone(), text: "sk-live-01f4", end: "sk-live-01f5" },
            uses: (0..100).map(used).collect(),
            cold: key(TENANT_KEYS, 5),
            caller: tenant(10_000),
            busy: called(100_000),
            hours: (0..=24).map(|hour| since + TimeDelta::hours(hour)).collect(),
            since,
            tenant_id,
        }
    }
}

fn operations(inputs: &Inputs) -> Vec<Operation<'_>> {
    fn operation<'a, T: Plain>(
        name: &'static str,
        call: impl Fn(&mut dyn Contender) -> Answer<T> + 'a,
    ) -> Operation<'a> {
        // The answer is told only where it is compared: writing it down takes longer than getting it.
        (
            name,
            Box::new(move |contender| {
                let answer = std::hint::black_box(call(contender));
                if COMPARING.get() { answer.told() } else { String::new() }
            }),
        )
    }
    let Inputs { tenant_id, key_id, prefix, uses, cold, caller, busy, since, hours } = inputs;
    let (ever, since) = (DateTime::UNIX_EPOCH, *since);
    vec![
        operation("one key", |contender| contender.one_key(tenant_id, key_id)),
        operation("page of 50", |contender| contender.page(tenant_id, 50)),
        operation("page of 1,000", |contender| contender.page(tenant_id, 1_000)),
        operation("page of 50 with usage", move |contender| contender.page_with_usage(tenant_id, 50, since)),
        operation("find by prefix", |contender| contender.by_prefix(prefix, 50)),
        operation("find by prefix, any tenant", |contender| contender.by_prefix_of_any_tenant(prefix, 50)),
        operation("count of 100,000", |contender| contender.count(tenant_id)),
        operation("count up to 100", |contender| contender.count_up_to(tenant_id, 100)),
        operation("usage, cold key (20 calls)", move |contender| contender.usage(tenant_id, cold, ever)),
        operation("usage, warm key (1,440 calls)", move |contender| contender.usage(caller, busy, since)),
        operation("usage, hot key (100,000 calls)", move |contender| contender.usage(caller, busy, ever)),
        operation("series, 24 hours", move |contender| contender.series(caller, busy, hours)),
        operation("lock + freeze + commit", |contender| {
            contender.freeze(tenant_id, key_id, now() + TimeDelta::microseconds(turn().into()))
        }),
        operation("lock + update + commit", |contender| {
            contender.update(tenant_id, key_id, "Production, read only", 60 + turn())
        }),
        operation("record uses of 100 keys", |contender| contender.record_uses(uses)),
        operation("record uses of 100 keys, not waiting", |contender| contender.try_record_uses(uses)),
    ]
}

/// Another number at each call, so that a change has something to change; the same where answers are compared.
fn turn() -> i32 {
    TURN.with(|turn| {
        turn.set(if COMPARING.get() { 0 } else { turn.get() % 1_000_000 + 1 });
        turn.get()
    })
}

thread_local! {
    static COMPARING: Cell<bool> = const { Cell::new(false) };
    static TURN: Cell<i32> = const { Cell::new(0) };
}

/// Fresh connections for each run: which processor a connection's backend lands on is luck.
const RUNS: u32 = 5;

fn race_peers(url: &str, budget: Duration, words: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let inputs = Inputs::new();
    for run in 1..=RUNS {
        eprintln!("run {run} of {RUNS}");
        let mut contenders: Vec<Box<dyn Contender>> =
            contenders::NAMES.iter().map(|name| contenders::connect(name, url)).collect();
        for (operation, call) in operations(&inputs).into_iter().filter(|(name, _)| name.contains(words)) {
            COMPARING.set(true);
            let answers: Vec<String> =
                contenders.iter_mut().map(|contender| call(&mut **contender)).collect();
            assert!(answers.iter().all(|answer| *answer == answers[0]), "{operation}: {answers:#?}");
            COMPARING.set(false);
            let timings = timing::race(&mut contenders, budget / RUNS, |contender| drop(call(contender)));
            match rows.iter_mut().find(|row| row.operation == operation) {
                Some(row) => row.runs.push(timings),
                None => rows.push(Row { operation, runs: vec![timings] }),
            }
        }
    }
    rows
}

fn race_threads(url: &str, slice: Duration) -> Vec<Threads> {
    // Each check-out of a pooled connection would else be a round trip of its own.
    let pool = Pool::builder()
        .max_size(16)
        .test_on_check_out(false)
        .build(ConnectionManager::<PgConnection>::new(url));
    let pool = pool.expect("a pool");
    let pooled = || -> Box<dyn FnMut()> {
        let (pool, tenant_id, one) = (pool.clone(), tenant(TENANT_KEYS), key(TENANT_KEYS, 7));
        Box::new(move || {
            let mut conn = pool.get().expect("a connection");
            let found = api_keys_driver::KeysDriver::new(&mut conn).fetch_key_by_id(&tenant_id, &one);
            assert!(found.expect("an answer").is_some());
        })
    };
    let alone = || -> Box<dyn FnMut()> {
        let (mut libpq, tenant_id, one) =
            (libpq::Libpq::connect(url), tenant(TENANT_KEYS), key(TENANT_KEYS, 7));
        Box::new(move || assert!(matches!(libpq.one_key(&tenant_id, &one), Answer::Peer(Some(_)))))
    };
    let median = |mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    [1, 2, 4, 8, 16]
        .map(|threads| {
            eprintln!("timing {threads} threads");
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                ours.push(timing::throughput(threads, slice, pooled));
                theirs.push(timing::throughput(threads, slice, alone));
            }
            Threads { threads, pooled: median(ours), libpq: median(theirs) }
        })
        .into()
}
