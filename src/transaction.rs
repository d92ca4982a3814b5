//! Runs an engine's work in a transaction. The errors that the work may return are in `transaction::error`.

mod error;

use std::fmt;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use diesel::connection::{
    AnsiTransactionManager, InstrumentationEvent, SimpleConnection, TransactionManager,
};
use diesel::prelude::*;

pub use self::error::TransactionError;

use crate::error::advice_on;
use crate::require::is_text;
use crate::{Advice, Error, Result, TenantId, Timeouts, session};

type Transactions = AnsiTransactionManager;

/// Runs an engine's work in a transaction: begins it, commits it, and runs it again after an error whose advice is
/// [`Advice::RetryTransaction`].
///
/// The drivers never begin or end a transaction. An engine can use this type, or Diesel's
/// `connection.transaction(..)`. This type differs from Diesel's method as follows:
///
/// - `Ok` means committed. If the work ignores the error of a statement, the server rolls the transaction back, and
///   the result is [`Error::TransactionAborted`]. Diesel's method returns `Ok`.
/// - After a deadlock, a serialization failure or a lock timeout, the work runs again from the start, at once, up to
///   the given number of attempts. So the work must have no effects outside the transaction.
/// - If the connection is lost during the commit, the result is [`Error::CommitUnknown`], and the work does not run
///   again.
/// - If the work panics, the transaction is rolled back before the panic continues. With Diesel's method, a caught
///   panic leaves the transaction open: later changes on the connection seem to succeed, and are lost.
/// - If the advice of an error requires another connection, the connection is marked as broken, and its pool drops it.
///
/// The isolation level is the server's `default_transaction_isolation`. To use another level, set it in the first statement
/// of the work. A serialization failure runs the work again, also one at the commit:
///
/// ```
/// use api_keys_driver::{Error, KeysDriver, TenantId, Transaction};
/// use diesel::PgConnection;
/// use diesel::connection::SimpleConnection;
///
/// fn count_keys(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<i64, Error> {
///     Transaction::attempts(10).run(conn, |conn| {
///         conn.batch_execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")?;
///         KeysDriver::new(conn).count_keys(tenant_id)
///     })
/// }
/// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
/// # assert_eq!(count_keys(&mut database.connect().unwrap(), &"nobody".into()).unwrap(), 0);
/// ```
///
/// The cost is the same as with Diesel's method: one round trip for `BEGIN` and one for `COMMIT`. Diesel's
/// instrumentation gets the same events.
///
/// `Ok` means that the server has confirmed `COMMIT`. If a synchronous standby is lost, the server waits for it without
/// a limit. If somebody cancels this wait (`pg_cancel_backend`), the server confirms a commit that the standby does not
/// have. The server also sends a warning, but Diesel does not pass it on.
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
/// A lock cannot leave the closure, so this does not compile:
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
/// A snapshot can leave it:
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
#[derive(Clone)]
pub struct Transaction {
    attempts: u32,
    timeouts: Option<Timeouts>,
    or_savepoint: bool,
    on_retry: Option<Arc<OnRetry>>,
}

type OnRetry = dyn Fn(&Retry<'_>) + Send + Sync;

/// A failed attempt of a [`Transaction`], before the next attempt.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Retry<'e> {
    /// The number of the failed attempt, counted from 1.
    pub attempt: u32,
    /// The error of the work or of the commit.
    pub reason: &'e (dyn std::error::Error + 'static),
}

impl Transaction {
    /// Makes a transaction with this number of attempts, including the first. 0 means 1.
    #[must_use]
    pub fn attempts(attempts: u32) -> Self {
        Self { attempts, timeouts: None, or_savepoint: false, on_retry: None }
    }

    /// Sets timeouts for this transaction only, in the round trip of `BEGIN`.
    ///
    /// Use it behind a bouncer in transaction mode, where a session cannot keep settings. Direct connections already
    /// have the timeouts of [`PoolConfig`](crate::PoolConfig).
    #[must_use]
    pub fn timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts: Some(timeouts), ..self }
    }

    /// Uses a savepoint if the connection already has a transaction, instead of [`Error::AlreadyInTransaction`].
    ///
    /// With a savepoint, `Ok` means that the work is committed if the outer transaction commits. The work runs only
    /// once, because only the outermost transaction can be run again. The timeouts, and the tenant of
    /// [`run_for`](Self::run_for), are those of the outer transaction.
    ///
    /// Use it for an engine whose units of work call each other, and in its tests:
    ///
    /// ```
    /// use api_keys_driver::{Error, KeysDriver, Transaction};
    /// use diesel::Connection;
    ///
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// conn.begin_test_transaction().unwrap();
    /// let transaction = Transaction::attempts(3).or_savepoint();
    /// let count = transaction.run(&mut conn, |conn| KeysDriver::new(conn).count_keys(&"tenant".into()));
    /// assert_eq!(count.unwrap(), 0);
    /// ```
    #[must_use]
    pub fn or_savepoint(self) -> Self {
        Self { or_savepoint: true, ..self }
    }

    /// Sets a function that is called before each further attempt, with the number and the error of the failed one.
    ///
    /// ```
    /// use api_keys_driver::Transaction;
    ///
    /// let transaction = Transaction::attempts(3)
    ///     .on_retry(|retry| eprintln!("attempt {} failed: {}", retry.attempt, retry.reason));
    /// ```
    #[must_use]
    pub fn on_retry(self, on_retry: impl Fn(&Retry<'_>) + Send + Sync + 'static) -> Self {
        Self { on_retry: Some(Arc::new(on_retry)), ..self }
    }

    /// Runs the work in a transaction, and commits if the work returns `Ok`.
    ///
    /// The work may use savepoints (`connection.transaction(..)`). It must not send `COMMIT` or `ROLLBACK`.
    ///
    /// Its error can be any type into which `?` converts this crate's [`Error`]: an engine's own enum, `anyhow::Error`,
    /// or `Box<dyn std::error::Error + Send + Sync>`. [`TransactionError`] says how the transaction finds a reason to
    /// run the work again.
    ///
    /// # Errors
    ///
    /// - The error of the work, after the transaction was rolled back.
    /// - [`Error::AlreadyInTransaction`] before anything is sent, if the connection already has a transaction.
    /// - From the commit: [`Error::TransactionAborted`], [`Error::CommitUnknown`], [`Error::NotInTransaction`] if the
    ///   work ended the transaction, and the error of a deferred constraint.
    ///
    /// # Panics
    ///
    /// If the work panics. The transaction is rolled back first.
    pub fn run<T, E, Kind>(
        &self,
        conn: &mut PgConnection,
        work: impl FnMut(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<Error> + TransactionError<Kind>,
    {
        self.run_with(&self.settings(), conn, work)
    }

    /// Runs the work as [`run`](Self::run) does, and sets the tenant for row-level security.
    ///
    /// The round trip of `BEGIN` also sets `api_keys.tenant_id`, for this transaction only, so it works through a
    /// bouncer. If the tables have the policies of `docs/row_level_security.md`, no statement of the work sees or
    /// changes a row of another tenant. Without these policies, the setting has no effect.
    ///
    /// # Errors
    ///
    /// The errors of [`run`](Self::run), and [`Error::NulByte`] for an id with a NUL byte. No tenant has such an id.
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
    pub fn run_for<T, E, Kind>(
        &self,
        conn: &mut PgConnection,
        tenant_id: &TenantId,
        work: impl FnMut(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<Error> + TransactionError<Kind>,
    {
        is_text("tenant_id", tenant_id.as_str())?;
        let tenant = format!("; SET LOCAL api_keys.tenant_id = {}", literal(tenant_id.as_str()));
        self.run_with(&(self.settings() + &tenant), conn, work)
    }

    fn run_with<T, E, Kind>(
        &self,
        settings: &str,
        conn: &mut PgConnection,
        mut work: impl FnMut(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<Error> + TransactionError<Kind>,
    {
        if self.or_savepoint && depth(conn)?.is_some() {
            return in_savepoint(conn, work);
        }
        let mut attempt = 1;
        loop {
            let done = run_once(settings, conn, &mut work);
            match &done {
                Err(error) if attempt < self.attempts && is_retryable(error) => {
                    self.report_retry(attempt, error.as_error());
                }
                _ => return done,
            }
            attempt += 1;
        }
    }

    /// The statements after `BEGIN`.
    fn settings(&self) -> String {
        self.timeouts.map_or_else(String::new, |timeouts| format!("; {}", timeouts.to_sql("SET LOCAL")))
    }

    fn report_retry(&self, attempt: u32, reason: &(dyn std::error::Error + 'static)) {
        if let Some(on_retry) = &self.on_retry {
            on_retry(&Retry { attempt, reason });
        }
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("attempts", &self.attempts)
            .field("timeouts", &self.timeouts)
            .field("or_savepoint", &self.or_savepoint)
            .finish_non_exhaustive()
    }
}

fn run_once<T, E, Kind>(
    settings: &str,
    conn: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E>
where
    E: From<Error> + TransactionError<Kind>,
{
    begin(settings, conn)?;
    let done = undo_on_panic(conn, work, roll_back).and_then(|value| {
        commit(conn)?;
        Ok(value)
    });
    if let Err(error) = &done {
        roll_back(conn);
        if advice_on(error.as_error()).requires_another_connection() {
            session::mark_broken(conn);
        }
    }
    done
}

fn begin(settings: &str, conn: &mut PgConnection) -> Result<()> {
    if depth(conn)?.is_some() {
        return Err(Error::AlreadyInTransaction);
    }
    Ok(Transactions::begin_transaction_sql(conn, &format!("BEGIN{settings}"))?)
}

/// Quotes a text as a literal, because `SET` accepts no bind values. The literal has the same meaning for each value of
/// `standard_conforming_strings`.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

fn is_retryable<E: TransactionError<Kind>, Kind>(error: &E) -> bool {
    advice_on(error.as_error()) == Advice::RetryTransaction
}

/// Runs the work in a savepoint. If the server has rolled the savepoint back, its release fails.
fn in_savepoint<T, E: From<Error>>(
    conn: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    Transactions::begin_transaction(conn).map_err(Error::from)?;
    let savepoint = depth(conn)?;
    let roll_back = |conn: &mut PgConnection| {
        while depth(conn).is_ok_and(|now| now >= savepoint)
            && Transactions::rollback_transaction(conn).is_ok()
        {}
    };
    let value = undo_on_panic(conn, work, roll_back).inspect_err(|_: &E| roll_back(conn))?;
    release(conn, savepoint).inspect_err(|_| roll_back(conn))?;
    Ok(value)
}

/// Releases a savepoint, with those that the work left open in it.
fn release(conn: &mut PgConnection, savepoint: Option<NonZeroU32>) -> Result<()> {
    if depth(conn)? < savepoint {
        return Err(Error::NotInTransaction);
    }
    while depth(conn)? >= savepoint {
        Transactions::commit_transaction(conn)?;
    }
    Ok(())
}

fn undo_on_panic<T>(
    conn: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> T,
    undo: impl FnOnce(&mut PgConnection),
) -> T {
    catch_unwind(AssertUnwindSafe(|| work(conn))).unwrap_or_else(|panic| {
        undo(conn);
        resume_unwind(panic)
    })
}

/// Commits, unless the server has already rolled the transaction back.
///
/// In an aborted transaction, `COMMIT` succeeds and rolls back. Only its command tag says so, and Diesel does not
/// return the tag. The empty `SELECT` before it, in the same round trip, fails in an aborted transaction.
fn commit(conn: &mut PgConnection) -> Result<()> {
    let Some(depth) = depth(conn)? else { return Err(Error::NotInTransaction) };
    report(conn, depth, InstrumentationEvent::commit_transaction);
    conn.batch_execute("SELECT; COMMIT").map_err(|error| match Error::from(error) {
        Error::ConnectionLost(source) => Error::CommitUnknown(source),
        refused => refused,
    })
}

/// Rolls the transaction back, with all its savepoints, if it is still open.
fn roll_back(conn: &mut PgConnection) {
    if let Ok(Some(depth)) = depth(conn) {
        report(conn, depth, InstrumentationEvent::rollback_transaction);
        // This fails only on a lost connection, whose transaction the server rolls back.
        let _ = conn.batch_execute("ROLLBACK");
    }
}

/// Reports the end of the transaction, and of each open savepoint, to Diesel's instrumentation.
fn report(
    conn: &mut PgConnection,
    depth: NonZeroU32,
    event: fn(NonZeroU32) -> InstrumentationEvent<'static>,
) {
    for depth in (1..=depth.get()).rev().filter_map(NonZeroU32::new) {
        conn.instrumentation().on_connection_event(event(depth));
    }
}

fn depth(conn: &mut PgConnection) -> Result<Option<NonZeroU32>> {
    Ok(Transactions::transaction_manager_status_mut(conn).transaction_depth()?)
}
