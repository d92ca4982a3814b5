//! Waits until a change of a key is committed. What changed is read in `keys_driver`.

use std::thread;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;

use crate::Result;
use crate::send::read;

/// The name of the notifications, which hold nothing.
const LISTEN: &str = "LISTEN api_key_events";

/// How often the socket is looked at. A look is one system call and sends nothing.
const LOOK: Duration = Duration::from_millis(5);

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wake {
    /// A change was committed, or another one of the table's notifications came.
    Notified,
    /// The time is over. There may be changes: a notification can be lost.
    TimedOut,
}

/// Waits for changes of keys on a connection of its own, without asking the server.
///
/// The server notifies only where the trigger for it was switched on, because that makes writers wait for
/// each other: see `docs/events.md`. Without it, and through a bouncer in transaction mode, every wait ends
/// with [`Wake::TimedOut`], and the follower polls: give it the interval to poll at.
///
/// Dropping it leaves the connection listening: do not give that back to a pool.
pub struct KeyEventListener<'c> {
    conn: &'c mut PgConnection,
}

impl<'c> KeyEventListener<'c> {
    /// Begins to listen. Changes that are committed from here on end a [`wait`](Self::wait).
    pub fn new(conn: &'c mut PgConnection) -> Result<Self> {
        read(conn, |conn| conn.batch_execute(LISTEN))?;
        Ok(Self { conn })
    }

    /// Lends the connection, to read the changes.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.conn
    }

    /// Waits until a change is committed, but no longer than a time. Changes since the last wait count.
    ///
    /// A notification is seen within some milliseconds. Several that came meanwhile are one.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionLost`](crate::Error::ConnectionLost) where the server closed the connection.
    pub fn wait(&mut self, at_most: Duration) -> Result<Wake> {
        let began = Instant::now();
        loop {
            let notified = read(self.conn, |conn| {
                conn.notifications_iter().try_fold(false, |_, notification| notification.map(|_| true))
            })?;
            if notified {
                return Ok(Wake::Notified);
            }
            let Some(left) = at_most.checked_sub(began.elapsed()) else { return Ok(Wake::TimedOut) };
            thread::sleep(left.min(LOOK));
        }
    }
}
