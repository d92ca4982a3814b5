//! What happened in a soak, and whether that is good.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What happened, in the order in which it is printed.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) changes: AtomicU64,
    pub(crate) uses: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) events: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    pub(crate) unknown_commits: AtomicU64,
    pub(crate) given_up: AtomicU64,
    pub(crate) sessions_ended: AtomicU64,
    pub(crate) lock_storms: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) crashes: AtomicU64,
    pub(crate) failovers: AtomicU64,
    pub(crate) longest_pause: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) doubled: AtomicU64,
    pub(crate) unacknowledged: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) leaked: AtomicU64,
    pub(crate) unexpected: AtomicU64,
}

pub(crate) fn add(count: &AtomicU64) {
    count.fetch_add(1, Relaxed);
}

impl Counts {
    /// Whether every promise was kept, and everything was tried.
    pub(crate) fn is_good(&self) -> bool {
        let broken =
            [&self.lost, &self.doubled, &self.unacknowledged, &self.skipped, &self.leaked, &self.unexpected];
        broken.iter().all(|count| count.load(Relaxed) == 0) && self.tried_everything()
    }

    /// Whether all kinds of work were done, and the server was lost.
    pub(crate) fn tried_everything(&self) -> bool {
        let done = [&self.changes, &self.uses, &self.calls, &self.reads, &self.events, &self.reconnects];
        let faults = self.crashes.load(Relaxed) + self.failovers.load(Relaxed);
        done.iter().all(|count| count.load(Relaxed) > 0) && faults > 0
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in [
            ("changes acknowledged", &self.changes),
            ("uses without a transaction", &self.uses),
            ("calls acknowledged", &self.calls),
            ("reads answered", &self.reads),
            ("events followed", &self.events),
            ("transactions run again", &self.retries),
            ("new connections", &self.reconnects),
            ("commits of unknown outcome", &self.unknown_commits),
            ("changes that did not happen", &self.given_up),
            ("faults: all sessions ended", &self.sessions_ended),
            ("faults: lock storms", &self.lock_storms),
            ("faults: restarts", &self.restarts),
            ("faults: crashes", &self.crashes),
            ("faults: failovers", &self.failovers),
            ("longest wait for a change (ms)", &self.longest_pause),
            ("LOST", &self.lost),
            ("DOUBLED", &self.doubled),
            ("there though not acknowledged", &self.unacknowledged),
            ("events skipped", &self.skipped),
            ("connections leaked", &self.leaked),
            ("errors nobody expects", &self.unexpected),
        ] {
            writeln!(f, "{name:32} {:>9}", count.load(Relaxed))?;
        }
        Ok(())
    }
}
