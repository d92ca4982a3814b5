//! A transaction that cannot report a commit that did not happen. What its work may fail with stands in
//! `transaction::error`.

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
use crate::{Advice, Error, Result, TenantId, Timeouts, session};

type Transactions = AnsiTransactionManager;

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
/// - A panic of the work undoes the transaction before it goes on. After Diesel's, a caught panic leaves
///   the transaction open: what is written next on the connection is acknowledged, and lost.
/// - A connection that an error condemns is marked as broken, so that its pool drops it.
///
/// It costs what Diesel's does: `BEGIN` and `COMMIT` are one round trip each. Diesel's instrumentation
/// sees the same events.
///
/// `Ok` means as much as the server's own answer to `COMMIT`. On a server with a synchronous standby that
/// is gone, the answer waits without a limit, and a session whose wait is cancelled
/// (`pg_cancel_backend`) answers that the commit is done although only this server has it. The warning
/// that the server sends along is not passed on by Diesel.
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
#[derive(Clone)]
pub struct Transaction {
    attempts: u32,
    timeouts: Option<Timeouts>,
    nests: bool,
    on_retry: Option<Arc<OnRetry>>,
}

type OnRetry = dyn Fn(&Retry<'_>) + Send + Sync;

/// An attempt of a [`Transaction`] that failed and is made again.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Retry<'e> {
    /// Which attempt failed: 1 is the first.
    pub attempt: u32,
    /// What the work, or the commit, failed with.
    pub reason: &'e (dyn std::error::Error + 'static),
}

impl Transaction {
    /// Allows a number of attempts, the first one included. There is always a first one.
    #[must_use]
    pub fn attempts(attempts: u32) -> Self {
        Self { attempts, timeouts: None, nests: false, on_retry: None }
    }

    /// Sets timeouts for the transaction only, in the round trip of its `BEGIN`.
    ///
    /// This is for connections through a transaction-mode bouncer, where a session has no settings of
    /// its own. On a direct connection those of [`PoolConfig`](crate::PoolConfig) are there already.
    #[must_use]
    pub fn timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts: Some(timeouts), ..self }
    }

    /// Uses a savepoint where a transaction is open already, instead of failing with
    /// [`Error::AlreadyInTransaction`].
    ///
    /// Then `Ok` means that the work is kept if the outer transaction commits. There is one attempt,
    /// whatever [`attempts`](Self::attempts) says: only the outermost transaction can be run again as a
    /// whole. The timeouts, and the tenant of [`run_for`](Self::run_for), are those of the outer transaction.
    ///
    /// This is for an engine whose units of work call each other, and for its tests:
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
        Self { nests: true, ..self }
    }

    /// Tells of each attempt that is made again, and why, before it is.
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

    /// Runs the work, and commits if it answers `Ok`.
    ///
    /// The work must leave the transaction open: it may use savepoints (`connection.transaction(..)`
    /// within it), but send no `COMMIT` or `ROLLBACK` of its own.
    ///
    /// It may fail with any error that `?` turns this crate's [`Error`] into: an engine's own enum,
    /// `anyhow::Error`, `Box<dyn std::error::Error + Send + Sync>`. See [`TransactionError`] for how a
    /// reason to run again is found in it.
    ///
    /// # Errors
    ///
    /// What the work returned, and then all of it is undone. [`Error::AlreadyInTransaction`] before
    /// anything is sent. Of the commit: [`Error::TransactionAborted`], [`Error::CommitUnknown`],
    /// [`Error::NotInTransaction`] when the work ended the transaction by itself, and whatever a
    /// deferred constraint refuses.
    ///
    /// # Panics
    ///
    /// When the work does, after all of it is undone.
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
    pub fn run_for<T, E, Kind>(
        &self,
        conn: &mut PgConnection,
        tenant_id: &TenantId,
        work: impl FnMut(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<Error> + TransactionError<Kind>,
    {
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
        if self.nests && depth(conn)?.is_some() {
            return in_savepoint(conn, work);
        }
        let mut attempt = 1;
        loop {
            let done = run_once(settings, conn, &mut work);
            match &done {
                Err(error) if attempt < self.attempts && retries(error) => {
                    self.tell(attempt, error.as_error());
                }
                _ => return done,
            }
            attempt += 1;
        }
    }

    /// What follows `BEGIN`.
    fn settings(&self) -> String {
        self.timeouts.map_or_else(String::new, |timeouts| format!("; {}", timeouts.to_sql("SET LOCAL")))
    }

    fn tell(&self, attempt: u32, reason: &(dyn std::error::Error + 'static)) {
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
            .field("or_savepoint", &self.nests)
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
    let done = undone_by_panic(conn, work, roll_back).and_then(|value| {
        commit(conn)?;
        Ok(value)
    });
    if let Err(error) = &done {
        roll_back(conn);
        if advice_on(error.as_error()).requires_another_connection() {
            session::condemn(conn);
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

/// Quotes a text as a literal that means the same whatever `standard_conforming_strings` is: `SET` takes no
/// parameters.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

fn retries<E: TransactionError<Kind>, Kind>(error: &E) -> bool {
    advice_on(error.as_error()) == Advice::RetryTransaction
}

/// The release fails by itself when the server has undone the savepoint.
fn in_savepoint<T, E: From<Error>>(
    conn: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    Transactions::begin_transaction(conn).map_err(Error::from)?;
    let outer = depth(conn)?;
    let end = |conn: &mut PgConnection| {
        while depth(conn).is_ok_and(|now| now >= outer) && Transactions::rollback_transaction(conn).is_ok() {}
    };
    let value = undone_by_panic(conn, work, end).inspect_err(|_: &E| end(conn))?;
    Transactions::commit_transaction(conn).map_err(Error::from).inspect_err(|_| end(conn))?;
    Ok(value)
}

fn undone_by_panic<T>(
    conn: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> T,
    undo: impl FnOnce(&mut PgConnection),
) -> T {
    catch_unwind(AssertUnwindSafe(|| work(conn))).unwrap_or_else(|panic| {
        undo(conn);
        resume_unwind(panic)
    })
}

/// Commits unless the server has already undone the transaction.
///
/// `COMMIT` alone succeeds there and says only in its command tag, which Diesel keeps to itself, that it
/// was a rollback. The empty `SELECT` before it, in the same round trip, fails instead.
fn commit(conn: &mut PgConnection) -> Result<()> {
    let Some(depth) = depth(conn)? else { return Err(Error::NotInTransaction) };
    report(conn, depth, InstrumentationEvent::commit_transaction);
    conn.batch_execute("SELECT; COMMIT").map_err(|error| match Error::from(error) {
        Error::ConnectionLost(source) => Error::CommitUnknown(source),
        refused => refused,
    })
}

/// Ends what is left of the transaction, with any savepoint in it.
fn roll_back(conn: &mut PgConnection) {
    if let Ok(Some(depth)) = depth(conn) {
        report(conn, depth, InstrumentationEvent::rollback_transaction);
        // Fails only on a lost connection, and what that had not committed is undone.
        let _ = conn.batch_execute("ROLLBACK");
    }
}

/// Tells Diesel's instrumentation of the end of the transaction and of each savepoint left open in it.
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
