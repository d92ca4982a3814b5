use std::num::NonZeroU32;

use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;

use crate::error::advice_on;
use crate::{Advice, Error, Result, TenantId, Timeouts};

/// Runs an engine's work in a transaction: begins it, commits it, and runs it again when the server
/// advises so.
///
/// A driver never does any of this; an engine may do it in its own way. What this adds to Diesel's
/// `connection.transaction(..)`:
///
/// - `Ok` means committed. When the work swallows the error of a statement, the server has undone the
///   transaction, and the answer is [`Error::TransactionAborted`]. Diesel would answer `Ok`.
/// - A deadlock, a serialization failure and a lock timeout run the work again, at once and from the
///   start, up to the given number of attempts. The work must do nothing that cannot be undone.
/// - A connection that is lost during the commit is [`Error::CommitUnknown`]: it is never run again.
/// - A connection to a server that takes no writes is marked as broken, so that its pool drops it.
///
/// It costs what Diesel's does: `BEGIN` and `COMMIT` are one round trip each.
///
/// ```
/// use api_keys_driver::{Error, KeyId, KeySnapshot, KeyStatus, KeysDriver, PoolConfig, TenantId, Transaction};
/// use chrono::{DateTime, Utc};
/// use diesel::PgConnection;
///
/// #[derive(Debug, thiserror::Error)]
/// enum EngineError {
///     #[error("the key is revoked")]
///     Revoked,
///     #[error(transparent)]
///     Driver(#[from] Error),
/// }
///
/// fn freeze(
///     conn: &mut PgConnection,
///     tenant_id: &TenantId,
///     key_id: &KeyId,
///     now: DateTime<Utc>,
/// ) -> Result<Option<KeySnapshot>, EngineError> {
///     Transaction::attempts(3).run(conn, |conn| {
///         let mut keys = KeysDriver::new(conn);
///         let Some(key) = keys.fetch_key_for_update(tenant_id, key_id)? else { return Ok(None) };
///         if key.status == KeyStatus::Revoked {
///             return Err(EngineError::Revoked);
///         }
///         Ok(Some(keys.update_key_frozen(key, now)?))
///     })
/// }
/// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
/// # let mut conn = database.connect().unwrap();
/// # assert!(freeze(&mut conn, &"nobody".into(), &"key".into(), Utc::now()).unwrap().is_none());
/// ```
///
/// A lock cannot leave the closure:
///
/// ```compile_fail
/// # use api_keys_driver::{KeyId, KeySnapshot, KeysDriver, Result, TenantId, Transaction};
/// # use diesel::PgConnection;
/// # fn look(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Result<Option<KeySnapshot>> {
/// let key = Transaction::attempts(3).run(conn, |conn| {
///     let key = KeysDriver::new(conn).fetch_key_for_update(tenant_id, key_id)?;
///     Ok::<_, api_keys_driver::Error>(key.map(|key| key))
/// })?;
/// # Ok(key.map(|key| key.into_snapshot()))
/// # }
/// ```
///
/// A snapshot can:
///
/// ```
/// # use api_keys_driver::{KeyId, KeySnapshot, KeysDriver, Result, TenantId, Transaction};
/// # use diesel::PgConnection;
/// # fn look(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Result<Option<KeySnapshot>> {
/// let key = Transaction::attempts(3).run(conn, |conn| {
///     let key = KeysDriver::new(conn).fetch_key_for_update(tenant_id, key_id)?;
///     Ok::<_, api_keys_driver::Error>(key.map(|key| key.into_snapshot()))
/// })?;
/// # Ok(key)
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Transaction {
    attempts: u32,
    timeouts: Option<Timeouts>,
}

impl Transaction {
    /// Allows a number of attempts, the first one included. There is always a first one.
    #[must_use]
    pub fn attempts(attempts: u32) -> Self {
        Self { attempts, timeouts: None }
    }

    /// Sets timeouts for the transaction only, in the round trip of its `BEGIN`.
    ///
    /// This is for connections through a transaction-mode bouncer, where a session has no settings of
    /// its own. On a direct connection those of [`PoolConfig`](crate::PoolConfig) are there already.
    #[must_use]
    pub fn timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts: Some(timeouts), ..self }
    }

    /// Runs the work, and commits if it answers `Ok`.
    ///
    /// The work must leave the transaction open: it may use savepoints (`connection.transaction(..)`
    /// within it), but send no `COMMIT` or `ROLLBACK` of its own.
    ///
    /// # Errors
    ///
    /// What the work returned, and then all of it is undone. [`Error::AlreadyInTransaction`] before
    /// anything is sent. Of the commit: [`Error::TransactionAborted`], [`Error::CommitUnknown`],
    /// [`Error::NotInTransaction`] when the work ended the transaction by itself, and whatever a
    /// deferred constraint refuses.
    pub fn run<T, E>(
        &self,
        conn: &mut PgConnection,
        work: impl FnMut(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<Error> + std::error::Error + 'static,
    {
        self.run_with(&self.settings(), conn, work)
    }

    /// Runs the work as [`run`](Self::run) does, and tells the server for which tenant.
    ///
    /// The round trip of `BEGIN` also sets `api_keys.tenant_id`, for this transaction only, so a bouncer
    /// between is safe. Where the tables have the policies of `docs/row_level_security.md`, no statement of
    /// the work sees or changes another tenant's row, whatever its own conditions are. Without those
    /// policies nothing reads the setting.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run), and [`Error::Query`] for an id that holds a NUL byte.
    ///
    /// ```
    /// # use api_keys_driver::{KeysDriver, Result, TenantId, Transaction};
    /// # use diesel::PgConnection;
    /// fn count_keys(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<i64> {
    ///     Transaction::attempts(3).run_for(conn, tenant_id, |conn| KeysDriver::new(conn).count_keys(tenant_id))
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # assert_eq!(count_keys(&mut database.connect().unwrap(), &"o'hara\\".into()).unwrap(), 0);
    /// ```
    pub fn run_for<T, E>(
        &self,
        conn: &mut PgConnection,
        tenant_id: &TenantId,
        work: impl FnMut(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<Error> + std::error::Error + 'static,
    {
        let tenant = format!("; SET LOCAL api_keys.tenant_id = {}", literal(tenant_id.as_str()));
        self.run_with(&(self.settings() + &tenant), conn, work)
    }

    fn run_with<T, E>(
        &self,
        settings: &str,
        conn: &mut PgConnection,
        mut work: impl FnMut(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<Error> + std::error::Error + 'static,
    {
        let mut attempt = 1;
        loop {
            match run_once(settings, conn, &mut work) {
                Err(error) if attempt < self.attempts && advice_on(&error) == Advice::RetryTransaction => {
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    /// What follows `BEGIN`.
    fn settings(&self) -> String {
        self.timeouts.map_or_else(String::new, |timeouts| format!("; {}", timeouts.to_sql("SET LOCAL")))
    }
}

fn run_once<T, E>(
    settings: &str,
    conn: &mut PgConnection,
    work: &mut impl FnMut(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E>
where
    E: From<Error> + std::error::Error + 'static,
{
    begin(settings, conn)?;
    let done = work(conn).and_then(|value| {
        commit(conn)?;
        Ok(value)
    });
    if let Err(error) = &done {
        roll_back(conn);
        if advice_on(error) == Advice::Reconnect {
            AnsiTransactionManager::transaction_manager_status_mut(conn).set_in_error();
        }
    }
    done
}

fn begin(settings: &str, conn: &mut PgConnection) -> Result<()> {
    if depth(conn)?.is_some() {
        return Err(Error::AlreadyInTransaction);
    }
    Ok(AnsiTransactionManager::begin_transaction_sql(conn, &format!("BEGIN{settings}"))?)
}

/// Quotes a text as a literal that means the same whatever `standard_conforming_strings` is: `SET` takes no
/// parameters.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

/// Commits unless the server has already undone the transaction.
///
/// `COMMIT` alone succeeds there and says only in its command tag, which Diesel keeps to itself, that it
/// was a rollback. The empty `SELECT` before it, in the same round trip, fails instead.
fn commit(conn: &mut PgConnection) -> Result<()> {
    if depth(conn)?.is_none() {
        return Err(Error::NotInTransaction);
    }
    conn.batch_execute("SELECT; COMMIT").map_err(|error| match Error::from(error) {
        Error::ConnectionLost(source) => Error::CommitUnknown(source),
        refused => refused,
    })
}

/// Ends what is left of the transaction, with any savepoint in it.
fn roll_back(conn: &mut PgConnection) {
    if let Ok(Some(_)) = depth(conn) {
        // Fails only on a lost connection, and what that had not committed is undone.
        let _ = conn.batch_execute("ROLLBACK");
    }
}

fn depth(conn: &mut PgConnection) -> Result<Option<NonZeroU32>> {
    Ok(AnsiTransactionManager::transaction_manager_status_mut(conn).transaction_depth()?)
}
