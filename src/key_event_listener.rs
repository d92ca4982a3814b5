//! Waits until a change of a key is committed. Reading what changed belongs in `keys_driver`.

use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Integer;

use crate::Result;
use crate::send::{RunStatement, read};

/// The name of the notifications, which hold nothing.
const LISTEN: &str = "LISTEN api_key_events";

/// The pauses between two looks at the socket. Diesel keeps the socket to itself, so it cannot be waited on. A
/// look sends nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Wake {
    /// A change was committed since the last wait.
    Notified,
    /// The time is over. There may be changes: a notification can be lost.
    TimedOut,
    /// The time is over, and the server session that answers is not the one that listens: a bouncer in transaction
    /// mode is in between. Notifications are lost there. Each wait takes its whole time, so the follower polls.
    NotListening,
}

/// Waits for changes of keys on a connection of its own, without asking the server.
///
/// The server notifies only where the trigger for it was enabled, because writers then wait for
/// each other: see `docs/events.md`. Without it every wait ends with [`Wake::TimedOut`], and through a bouncer in
/// transaction mode with [`Wake::NotListening`] as soon as that can be seen. The follower polls then, at the
/// interval that it gives to [`wait`](Self::wait).
///
/// Dropping it leaves the connection listening: do not give that back to a pool.
pub struct KeyEventListener<'c> {
    conn: &'c mut PgConnection,
    /// The process of the session that listens; `None` once another one answered.
    listening: Option<i32>,
}

impl<'c> KeyEventListener<'c> {
    /// Begins to listen. Changes that are committed from here on end a [`wait`](Self::wait).
    pub fn new(conn: &'c mut PgConnection) -> Result<Self> {
        read(conn, |conn| conn.batch_execute(LISTEN))?;
        let listening = Some(BackendPid.read_one(conn)?);
        Ok(Self { conn, listening })
    }

    /// Lends the connection, to read the changes.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.conn
    }

    /// Waits until a change is committed, but no longer than a time. Changes since the last wait count.
    ///
    /// A notification is seen within 20 milliseconds. Several that came meanwhile are one. Waiting sends nothing;
    /// when the time is over, one statement asks whether the session that listens is still the one that answers.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionLost`](crate::Error::ConnectionLost) where the server closed the connection.
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
            let answers: i32 = BackendPid.read_one(self.conn)?;
            self.listening = self.listening.filter(|listens| *listens == answers);
        }
        Ok(if self.listening.is_some() { Wake::TimedOut } else { Wake::NotListening })
    }
}

/// The process id of the session that answers.
#[derive(QueryId)]
struct BackendPid;

impl Query for BackendPid {
    type SqlType = Integer;
}

impl RunQueryDsl<PgConnection> for BackendPid {}

impl QueryFragment<Pg> for BackendPid {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT pg_catalog.pg_backend_pid()");
        Ok(())
    }
}
