//! The failovers between two servers.

use std::thread;
use std::time::{Duration, Instant};

use throwaway_postgres::{Pair, Replication};

use super::{PATIENCE, Soak, add};

/// How long the workers have both servers, and how long only one.
const WORK: Duration = Duration::from_millis(1500);

impl Soak {
    /// Kills the primary, sometimes after it has stopped answering, promotes the standby, and brings the old primary
    /// back as the standby with `pg_rewind`.
    pub(crate) fn fail_over(&self, pair: &mut Pair, failovers: u32) {
        for failover in 0..failovers {
            thread::sleep(WORK);
            if failover % 3 == 2 {
                pair.primary.pause().expect("a paused server");
                thread::sleep(WORK);
            }
            pair.primary.kill().expect("a killed server");
            pair.promote().expect("a new primary");
            thread::sleep(WORK);
            pair.rejoin(Replication::Synchronous).expect("a new standby");
            add(&self.counts.failovers);
        }
        let end = Instant::now() + PATIENCE;
        thread::sleep(WORK);
        while !self.counts.tried_everything() && Instant::now() < end {
            thread::sleep(WORK);
        }
    }
}
