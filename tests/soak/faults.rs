//! The faults of one server.

use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::PrivateServer;

use super::{PATIENCE, Soak, add};

impl Soak {
    /// Injects faults until the end, and for longer on a machine that has not tried everything by then.
    pub(crate) fn inject_faults(&self, server: &mut PrivateServer, url: &str, end: Instant) {
        let faults = [Self::end_sessions, Self::hold_up, Self::crash, Self::end_sessions, Self::restart];
        for fault in faults.iter().cycle() {
            thread::sleep(Duration::from_millis(250));
            let is_enough = self.counts.tried_everything() || Instant::now() > end + PATIENCE;
            if Instant::now() > end && is_enough {
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
}
