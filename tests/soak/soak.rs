//! Workers change, read, meter and follow keys on a server that restarts, crashes, loses sessions and is held up,
//! or on a primary that is killed again and again while its standby takes over.
//!
//! ```text
//! cargo run --release --example soak -- --seconds 120
//! cargo run --release --example soak -- --failover 12
//! ```
//!
//! It prints what happened, and fails if a change that was acknowledged is not there or is there twice, one that
//! was not acknowledged is there, an event was skipped, or a connection leaked.

mod counts;
mod failovers;
mod faults;
mod ledger;
mod workers;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::{EventPosition, Pool, PoolConfig, TenantId, Timeouts, migrate};
use diesel::prelude::*;
use throwaway_postgres::{Pair, PrivateServer, Replication};

use self::counts::{Counts, add};

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const KEYS: u64 = 6;
/// A key and its tenant. Its uses are recorded without a transaction.
const COUNTED: &str = "counted";
const CHANGERS: u64 = 4;
const METERS: u64 = 2;
const POOL: u32 = 8;
/// How much longer a soak may take on a machine that has not tried everything in time.
const PATIENCE: Duration = Duration::from_secs(300);

struct Soak {
    pools: Vec<Pool>,
    tenant_id: TenantId,
    over: AtomicBool,
    next: AtomicU64,
    /// Whether each change was acknowledged. A change that is `false` here must not be in the ledger.
    acknowledged: Mutex<HashMap<i64, bool>>,
    /// The position of the last event that was followed.
    position: Mutex<Option<EventPosition>>,
    counts: Counts,
}

/// Runs the workers and the faults of one server for a while, and checks what is left.
pub(crate) fn soak(length: Duration) -> Counts {
    let mut server = PrivateServer::start_new().expect("a server");
    let url = server.url();
    let soak = Soak::start(&url, std::slice::from_ref(&url));
    soak.run(|soak| soak.inject_faults(&mut server, &url, Instant::now() + length));
    soak.end(&url)
}

/// Runs the workers while servers fail over, and checks what is left.
pub(crate) fn failover(failovers: u32) -> Counts {
    let mut pair = Pair::start_new(Replication::Synchronous).expect("two servers");
    let soak = Soak::start(&pair.url(), &[pair.url(), pair.tcp_url(), pair.key_values()]);
    soak.run(|soak| soak.fail_over(&mut pair, failovers));
    soak.end(&pair.url())
}

impl Soak {
    fn start(url: &str, pools: &[String]) -> Self {
        let mut conn = PgConnection::establish(url).expect("a connection");
        migrate(&mut conn).expect("a schema");
        ledger::set_up(&mut conn);
        let pool = |url: &String| {
            PoolConfig::new(url)
                .size(POOL)
                .wait(Duration::from_secs(1))
                .timeouts(Timeouts { lock: Duration::from_millis(1300), ..Timeouts::default() })
                .application_name("soak")
                .build()
                .expect("a pool")
        };
        Self {
            pools: pools.iter().map(pool).collect(),
            tenant_id: TENANT.into(),
            over: AtomicBool::new(false),
            next: AtomicU64::new(0),
            acknowledged: Mutex::default(),
            position: Mutex::default(),
            counts: Counts::default(),
        }
    }

    fn run(&self, faults: impl FnOnce(&Self)) {
        thread::scope(|scope| {
            for _ in 0..CHANGERS {
                scope.spawn(|| self.until_over(Self::change));
            }
            for _ in 0..METERS {
                scope.spawn(|| self.until_over(Self::meter));
            }
            scope.spawn(|| self.until_over(Self::use_once));
            scope.spawn(|| self.until_over(Self::read));
            scope.spawn(|| self.until_over(Self::follow));
            faults(self);
            self.over.store(true, Relaxed);
        });
    }

    fn end(self, url: &str) -> Counts {
        self.check(&mut PgConnection::establish(url).expect("a connection"));
        self.counts
    }
}

#[allow(dead_code, reason = "the test that includes this file has another")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u32>().expect("a number");
    let counts = match words[..] {
        [] => soak(Duration::from_secs(120)),
        ["--seconds", seconds] => soak(Duration::from_secs(number(seconds).into())),
        ["--failover"] => failover(12),
        ["--failover", failovers] => failover(number(failovers)),
        _ => {
            eprintln!("usage: soak [--seconds N | --failover [N]]");
            return ExitCode::from(2);
        }
    };
    print!("{counts}");
    if counts.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
