//! Opening, testing and dropping the connections of a pool. The configuration is in `pool.rs`.

use std::fmt;
use std::time::{Duration, Instant};

use diesel::connection::{CacheSize, SimpleConnection};
use diesel::prelude::*;
use diesel::r2d2::{ManageConnection, R2D2Connection};

use super::{StatementCache, watch};
use crate::error::{ConnectFailure, connect_error, setup_error};
use crate::{Result, Timeouts, session};

/// Opens the connections of a [`Pool`](super::Pool), and drops those that must not be used again.
///
/// Diesel's own manager drops a connection that is lost, or that is returned with an open transaction. This manager
/// also drops:
///
/// - a connection on which a method of this crate, or a statement that the engine sent itself, failed with
///   [`Advice::Reconnect`](crate::Advice::Reconnect) or [`Advice::CheckOutcome`](crate::Advice::CheckOutcome), even if
///   later statements succeeded
/// - a connection that is older than the pool's `max_lifetime` when it is returned
/// - a connection that is in a transaction when `get` tests it, because its last user sent `BEGIN` as SQL, which Diesel
///   does not notice. The next user's writes would be lost with that transaction.
/// - a connection whose server no longer matches `target_session_attrs` when `get` tests it, such as a connection to
///   the former primary after a failover. For this, the connection string must ask for `read-write` or `primary`.
///
/// The test of these two replaces the usual one, and costs no further round trip.
///
/// To detect failures of the engine's own statements, the manager sets an instrumentation on each connection. This
/// instrumentation passes all events on to Diesel's default instrumentation. Do not call `set_instrumentation` on a
/// connection of the pool: then only failures of this crate's methods and of [`Transaction`](crate::Transaction) are
/// detected. Set a default instrumentation (`diesel::connection::set_default_instrumentation`) instead.
#[derive(Clone)]
pub struct PoolManager {
    pub(super) connection_string: String,
    pub(super) timeouts: Timeouts,
    pub(super) statement_cache: StatementCache,
    pub(super) max_lifetime: Option<Duration>,
    pub(super) target: Target,
    pub(super) start: Instant,
}

/// What a server must be, as `target_session_attrs` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Any,
    ReadWrite,
    Primary,
}

const IN_TRANSACTION: &str = "its last user left a transaction open";
const NOT_THE_TARGET: &str = "it no longer matches target_session_attrs";

impl Target {
    /// The SQL condition for a session whose server has changed.
    fn is_lost(self) -> &'static str {
        match self {
            Self::Any => "false",
            Self::ReadWrite => {
                "pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on'"
            }
            Self::Primary => "pg_catalog.pg_is_in_recovery()",
        }
    }
}

impl PoolManager {
    pub(super) fn open(&self) -> Result<PgConnection> {
        let mut conn = PgConnection::establish(&self.connection_string).map_err(connect_error)?;
        match self.statement_cache {
            StatementCache::On => conn.batch_execute(&self.timeouts.to_sql("SET")).map_err(setup_error)?,
            StatementCache::Off => conn.set_prepared_statement_cache_size(CacheSize::Disabled),
        }
        session::set_opened_at(&mut conn, self.start.elapsed());
        watch::watch(&mut conn);
        Ok(conn)
    }

    /// Fails if the session is in a transaction, or if its server is lost as a target. It is one statement in the simple
    /// query protocol: there, `now()` equals `statement_timestamp()` in the first statement of a transaction only. The
    /// error of a cast quotes the reason.
    fn test(&self, conn: &mut PgConnection) -> Result<()> {
        let sql = format!(
            "SELECT CASE
               WHEN pg_catalog.now() OPERATOR(pg_catalog.<>) pg_catalog.statement_timestamp()
                 THEN CAST(pg_catalog.concat('{IN_TRANSACTION}') AS pg_catalog.int4)
               WHEN {} THEN CAST(pg_catalog.concat('{NOT_THE_TARGET}') AS pg_catalog.int4) END",
            self.target.is_lost(),
        );
        conn.batch_execute(&sql).map_err(|error| {
            let message = error.to_string();
            let reason = [IN_TRANSACTION, NOT_THE_TARGET].into_iter().find(|reason| message.contains(reason));
            reason.map_or_else(|| setup_error(error), |reason| connect_error(unusable(reason)))
        })
    }

    fn is_too_old(&self, conn: &mut PgConnection) -> bool {
        let age = session::opened_at(conn).map(|opened_at| self.start.elapsed().saturating_sub(opened_at));
        age.zip(self.max_lifetime).is_some_and(|(age, most)| age > most)
    }
}

/// The message has the form of libpq's messages, so that `connect_error` recognises it.
pub(super) fn unusable(reason: &str) -> diesel::ConnectionError {
    diesel::ConnectionError::BadConnection(format!("connection to server of the pool failed: {reason}"))
}

impl ManageConnection for PoolManager {
    type Connection = PgConnection;
    type Error = ConnectFailure;

    fn connect(&self) -> Result<PgConnection, ConnectFailure> {
        self.open().map_err(ConnectFailure::from)
    }

    fn is_valid(&self, conn: &mut PgConnection) -> Result<(), ConnectFailure> {
        self.test(conn).map_err(ConnectFailure::from)
    }

    fn has_broken(&self, conn: &mut PgConnection) -> bool {
        std::thread::panicking()
            || conn.is_broken()
            || session::is_marked_broken(conn)
            || watch::saw_broken(conn)
            || self.is_too_old(conn)
    }
}

/// Shows no field, because the connection string may hold a password.
impl fmt::Debug for PoolManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolManager").finish_non_exhaustive()
    }
}
