//! Waits until a change of a key is committed. The events are read in `keys_driver`.

use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Integer;

use crate::Result;
use crate::send::{RunStatement, read};

/// The notifications hold no data.
const LISTEN: &str = "LISTEN api_key_events";

/// The pauses between two looks at the socket. Diesel does not expose the socket, so the listener cannot block on it. A
/// look sends nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Wake {
    /// A change was committed since the last wait.
    Notified,
    /// The wait timed out. There may still be changes, because a notification can be lost.
    TimedOut,
    /// The wait timed out, and the session does not listen: the connection uses another one now, as behind a bouncer in
    /// transaction mode, or `UNLISTEN` was sent. Notifications are lost. Each wait takes its whole time, so the follower
    /// polls.
    NotListening,
}

/// Waits for changes of keys on its own connection, without a query.
///
/// The trigger that notifies is disabled by default, because with it writers wait for each other: see `docs/events.md`.
/// Without it every wait ends with [`Wake::TimedOut`]. Behind a bouncer in transaction mode, a wait ends with
/// [`Wake::NotListening`] once the session is known to be another one. In both cases the follower polls, at the
/// interval that it passes to [`wait`](Self::wait).
///
/// Use it outside a transaction. A session gets no notifications while it has one, and the server keeps those of all
/// sessions until then.
///
/// When it is dropped, the session still listens: do not give the connection back to a pool.
pub struct KeyEventListener<'c> {
    conn: &'c mut PgConnection,
    /// The process id of the session that listens. `None` after a session answered that does not.
    listening: Option<i32>,
}

impl<'c> KeyEventListener<'c> {
    /// Begins to listen. Changes that are committed from now on end a [`wait`](Self::wait).
    pub fn new(conn: &'c mut PgConnection) -> Result<Self> {
        read(conn, |conn| conn.batch_execute(LISTEN))?;
        let listening = ListeningPid.read_optional(conn)?;
        Ok(Self { conn, listening })
    }

    /// Returns the connection, to read the changes.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.conn
    }

    /// Waits until a change is committed, but not longer than `at_most`. Changes since the last wait count.
    ///
    /// A notification is noticed within 20 milliseconds. Several notifications end one wait. Waiting sends nothing.
    /// When the wait times out, one statement checks that the connection still uses the session that listens.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionLost`](crate::Error::ConnectionLost) if the server closed the connection.
    pub fn wait(&mut self, at_most: Duration) -> Result<Wake> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let notified = read(self.conn, |conn| {
                conn.notifications_iter().try_fold(false, |_, notification| notification.map(|_| true))
            })?;
            if notified {
                return Ok(Wake::Notified);
            }
            let Some(left) = at_most.checked_sub(began.elapsed()) else { break };
            thread::sleep(left.min(pause));
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        if self.listening.is_some() {
            let listening = ListeningPid.read_optional(self.conn)?;
            self.listening = self.listening.filter(|_| self.listening == listening);
        }
        Ok(if self.listening.is_some() { Wake::TimedOut } else { Wake::NotListening })
    }
}

/// The process id of the session that answers, if it listens.
#[derive(QueryId)]
struct ListeningPid;

impl Query for ListeningPid {
    type SqlType = Integer;
}

impl RunQueryDsl<PgConnection> for ListeningPid {}

impl QueryFragment<Pg> for ListeningPid {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "SELECT pg_catalog.pg_backend_pid()
             WHERE 'api_key_events' IN (SELECT pg_catalog.pg_listening_channels())",
        );
        Ok(())
    }
}
