//! How a pool opens, tests and drops a connection. What it is configured with stands in `pool`.

use std::fmt;
use std::time::{Duration, Instant};

use diesel::connection::{CacheSize, SimpleConnection};
use diesel::dsl::select;
use diesel::prelude::*;
use diesel::r2d2::{ManageConnection, R2D2Connection};
use diesel::sql_types::Text;

use super::StatementCache;
use crate::error::{ConnectFailure, connect_error};
use crate::{Result, Timeouts, session};

/// Opens the connections of a [`Pool`](super::Pool), and drops those that are of no further use.
///
/// Diesel's own manager drops a connection that is lost or that was given back within a transaction.
/// This one also drops a connection
///
/// - on which a call failed with [`Advice::Reconnect`](crate::Advice::Reconnect), whatever worked on it
///   afterwards;
/// - that is older than the pool's `max_lifetime` when it is given back;
/// - whose server no longer is what `target_session_attrs` asks for when it is to be handed out: after a
///   failover, a session on the former primary. This needs `read-write` or `primary` in the connection
///   string, and takes the place of the usual test, at no further cost.
#[derive(Clone)]
pub struct PoolManager {
    pub(super) connection_string: String,
    pub(super) timeouts: Timeouts,
    pub(super) statement_cache: StatementCache,
    pub(super) max_lifetime: Option<Duration>,
    pub(super) target: Target,
    pub(super) start: Instant,
}

/// What a session must be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Any,
    Writes,
    Primary,
}

#[diesel::declare_sql_function]
extern "SQL" {
    fn current_setting(name: Text) -> Text;
    fn pg_is_in_recovery() -> Bool;
}

impl PoolManager {
    pub(super) fn open(&self) -> Result<PgConnection> {
        let mut conn = PgConnection::establish(&self.connection_string).map_err(connect_error)?;
        match self.statement_cache {
            StatementCache::On => conn.batch_execute(&self.timeouts.to_sql("SET"))?,
            StatementCache::Off => conn.set_prepared_statement_cache_size(CacheSize::Disabled),
        }
        session::note_birth(&mut conn, self.start.elapsed());
        Ok(conn)
    }

    fn test(&self, conn: &mut PgConnection) -> Result<()> {
        let serves = match self.target {
            Target::Any => conn.ping().map(|()| true),
            Target::Writes => {
                let is_read_only =
                    select(current_setting("transaction_read_only")).get_result::<String>(conn);
                is_read_only.map(|setting| setting == "off")
            }
            Target::Primary => select(pg_is_in_recovery()).get_result(conn).map(|replica: bool| !replica),
        }?;
        if serves { Ok(()) } else { Err(connect_error(not_the_target())) }
    }

    fn is_too_old(&self, conn: &mut PgConnection) -> bool {
        let age = session::birth(conn).map(|birth| self.start.elapsed().saturating_sub(birth));
        age.zip(self.max_lifetime).is_some_and(|(age, most)| age > most)
    }
}

/// In libpq's words for a server that it passes over.
fn not_the_target() -> diesel::ConnectionError {
    let said = "connection to server of the pool failed: it is no longer what target_session_attrs asks for";
    diesel::ConnectionError::BadConnection(said.into())
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
        std::thread::panicking() || conn.is_broken() || session::is_condemned(conn) || self.is_too_old(conn)
    }
}

/// Shows nothing of the connection string, which may hold a password.
impl fmt::Debug for PoolManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolManager").finish_non_exhaustive()
    }
}
