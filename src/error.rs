//! The crate's error and its advice. `classify` recognises failures of a statement, and `connect` recognises
//! failures of a connection.

mod classify;
mod connect;
mod violation;

use self::classify::Kind;
use self::violation::without_values;
use crate::{KeyId, TenantId};

pub use self::connect::ConnectFailure;
pub(crate) use self::connect::{connect_error, setup_error};
pub(crate) use self::violation::{is_constraint, violated_constraint};

/// A `Result` whose error is this crate's [`Error`](enum@Error) by default.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a method failed. [`advice`](Error::advice) says what to do.
///
/// "Not found" is not an error: methods return `None`. A message says what happened and what to do. The server's own
/// message is in [`source`](std::error::Error::source). Neither shows a secret. The server's `DETAIL` holds values of
/// rows, which include hashes, so the crate drops it. The source still names the table, the column and the constraint.
///
/// Diesel 2.3 does not pass the server's error codes on. So the crate recognises some kinds only by the server's
/// English message: a deadlock, a lock timeout, a statement timeout, an aborted transaction, a lost prepared statement
/// and a schema mismatch. If the server's `lc_messages` is another language, these kinds are [`Error::Query`], whose
/// advice is [`Advice::Fail`]. To avoid this, run `ALTER DATABASE .. SET lc_messages = 'C'`.
///
/// ```
/// use api_keys_driver::{Advice, KeysDriver, PoolConfig, Result, TenantId};
///
/// /// Counts a tenant's keys. If the connection is lost, it tries once more on another connection.
/// fn count_keys(pool: &api_keys_driver::Pool, tenant_id: &TenantId) -> Result<i64> {
///     let count = || KeysDriver::new(&mut *pool.get()?).count_keys(tenant_id);
///     match count() {
///         Err(error) if error.advice() == Advice::Reconnect => count(),
///         counted => counted,
///     }
/// }
/// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
/// # let pool = PoolConfig::new(database.url()).build().unwrap();
/// # assert_eq!(count_keys(&pool, &"nobody".into()).unwrap(), 0);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method that locks or changes a key was called outside a transaction. Nothing was sent to the server.
    #[error("the connection has no transaction: lock and change keys inside `connection.transaction(..)`")]
    NotInTransaction,

    /// The connection already has a transaction, so a [`Transaction`](crate::Transaction) cannot begin, and
    /// [`migrate`](crate::migrate()), [`check`](crate::check()) and [`DeniedKeys::seed`](crate::DeniedKeys::seed) cannot
    /// run. Nothing was changed.
    ///
    /// A [`Transaction`](crate::Transaction) can use a savepoint instead:
    /// [`or_savepoint`](crate::Transaction::or_savepoint).
    #[error("the connection already has a transaction: use a connection that has none")]
    AlreadyInTransaction,

    /// A tenant was locked in a `REPEATABLE READ` transaction, which does not see keys that others inserted after
    /// its first statement. The tenant stays locked until the transaction ends.
    #[error(
        "a REPEATABLE READ transaction does not see keys that others insert: lock the tenant in a READ COMMITTED one"
    )]
    RepeatableRead,

    /// A [`LockedKey`](crate::LockedKey) was passed to the driver of a connection that did not lock the key. Nothing
    /// was sent to the server.
    #[error("key {0} was locked through another connection: change it through the connection that locked it")]
    LockedElsewhere(KeyId),

    /// The row of a locked key was deleted, or changed by another transaction. Nothing was changed.
    ///
    /// Either the transaction itself deleted the row or moved it to another tenant. Or the transaction, or the
    /// savepoint, that locked the row has ended, and another transaction has changed the row.
    #[error(
        "the lock of key {0} was lost, and its row was changed or deleted: lock the key and decide again"
    )]
    LockLost(KeyId),

    /// A key of some tenant already has the id of the new key. Nothing was inserted.
    #[error("a key with the id {0} already exists: insert the new key with another id")]
    KeyExists(KeyId),

    /// A key of some tenant already has the hash of the new key. Nothing was inserted. The id is that of the new key.
    #[error("another key already has the hash of the new key {0}: make another secret")]
    KeyHashExists(KeyId),

    /// The tenant of a new key does not exist. Nothing was inserted.
    #[error("tenant {0} does not exist: create the tenant first")]
    UnknownTenant(TenantId),

    /// The user of a new key does not exist. Nothing was inserted.
    #[error("user {0} does not exist: create the user first, or insert the key without a user")]
    UnknownUser(String),

    /// A text has more characters than its column holds. Nothing was sent to the server.
    #[error("{column} holds at most {limit} characters: shorten the text")]
    TooLong {
        /// The column.
        column: &'static str,
        /// The number of characters that the column holds.
        limit: usize,
    },

    /// A text holds a NUL byte, which PostgreSQL cannot store in a text. Nothing was sent to the server.
    #[error("{column} cannot hold a NUL byte: remove it from the text")]
    NulByte {
        /// The column.
        column: &'static str,
    },

    /// A limit of a key is below zero. Nothing was sent to the server.
    #[error("{column} is negative: pass zero or more, or no limit")]
    Negative {
        /// The column.
        column: &'static str,
    },

    /// An amount has more digits than its column holds. Nothing was sent to the server.
    #[error("{column} holds at most six digits before the decimal point and four after it: round the amount")]
    TooManyDigits {
        /// The column.
        column: &'static str,
    },

    /// One element of a batch is invalid, so the whole batch is refused. Nothing was sent to the server.
    #[error("element {index} of the batch, counted from 0, is invalid: correct or remove it")]
    InBatch {
        /// The index of the element, counted from 0.
        index: usize,
        /// Why the element is invalid.
        source: Box<Error>,
    },

    /// A usage series would have this number of buckets, which is too many. Nothing was sent to the server.
    #[error("a series of {0} buckets is too long: ask for a shorter range, or for days instead of hours")]
    TooManyBuckets(i64),

    /// A boundary of usage is earlier than the one before it. Nothing was sent to the server.
    #[error("the boundaries are not in ascending order: sort them")]
    BoundariesNotAscending,

    /// A call in the requested range has the cost `NaN` or `Infinity`, so its usage has no sum. Only a `cost_cents` without
    /// a precision can hold `Infinity`.
    #[error(
        "a call of {who} has a cost that is not a finite number: set `proxy_calls.cost_cents` of that call to one, or \
         ask for a range without it", who = key_or_tenant(tenant_id, key_id.as_ref())
    )]
    CostNotANumber {
        /// The tenant of the call.
        tenant_id: TenantId,
        /// The key of the call; `None` if the usage of a whole tenant was requested.
        key_id: Option<KeyId>,
    },

    /// A position of an event is from another server, from before a failover, or from before the triggers were
    /// created again. The events up to that position may not exist on this server.
    #[error(
        "the position does not belong to the current history of this server: read the keys, and follow from a new head"
    )]
    PositionElsewhere,

    /// The tenant or the key of the next event is not valid UTF-8.
    #[error(
        "the event at {0} has an id that is not valid UTF-8: continue from this position to skip the event"
    )]
    UnreadableEvent(crate::EventPosition),

    /// A trigger that records events is missing or disabled, or tables inherit from `api_keys`, so changes of keys have
    /// no events: [`check`](crate::check()) says which. Or Citus distributes the tables, so there is no common order of
    /// events. See `docs/sharding.md`.
    #[error(
        "changes of keys cannot be followed here: correct what `check` reports about the triggers and children of \
         `api_keys`, or, if Citus distributes the table, follow its shards on their server"
    )]
    EventsNotRecorded,

    /// Two transactions waited for each other, and the server rolled this one back.
    #[error("the server rolled the transaction back to resolve a deadlock: run the transaction again")]
    Deadlock(#[source] diesel::result::Error),

    /// A `REPEATABLE READ` or `SERIALIZABLE` transaction conflicts with a concurrent change.
    #[error("the transaction conflicts with a concurrent change: run the transaction again")]
    SerializationFailure(#[source] diesel::result::Error),

    /// Another transaction held a lock for longer than `lock_timeout`.
    #[error("another transaction held the lock for longer than `lock_timeout`: run the transaction again")]
    LockTimeout(#[source] diesel::result::Error),

    /// A statement took longer than `statement_timeout`.
    #[error("a statement took longer than `statement_timeout`: ask for less, or raise the timeout")]
    StatementTimeout(#[source] diesel::result::Error),

    /// The server, or the transaction, is read-only: it accepts no changes and no row locks. After a failover, a
    /// connection may still lead to the former primary, which is now a standby.
    #[error("the server is read-only: connect to the primary")]
    ReadOnly(#[source] diesel::result::Error),

    /// The connection was lost. The server rolls the open transaction back.
    ///
    /// If the connection was lost during a commit, the error is [`Error::CommitUnknown`] instead. For this, the commit
    /// must be made by a [`Transaction`](crate::Transaction), or by a method of a driver outside a transaction.
    #[error("the connection was lost: take another connection, and repeat the work")]
    ConnectionLost(#[source] diesel::result::Error),

    /// The connection was lost during a commit, so the change may or may not be committed. On a Citus coordinator, the
    /// lost connection may be that to a shard's server.
    #[error(
        "the connection was lost during a commit: check whether the change happened before you repeat it"
    )]
    CommitUnknown(#[source] diesel::result::Error),

    /// An earlier statement of the transaction failed, and its error was ignored. The server rolled the transaction
    /// back.
    #[error("the transaction was rolled back because a statement failed: return the error of that statement")]
    TransactionAborted(#[source] diesel::result::Error),

    /// A value must be unique, and a row already has it.
    #[error("{constraint} allows each value only once, and the value already exists: use another value")]
    UniqueViolation {
        /// The constraint or index that refused the row.
        constraint: String,
        /// The server's message.
        source: diesel::result::Error,
    },

    /// A table, a column or a value does not have the form that this version of the crate expects.
    #[error("the database does not match this version of the crate: run `migrate`, or use another version")]
    SchemaMismatch(#[source] diesel::result::Error),

    /// The server does not have a statement that the connection has prepared, or the tables have changed since. A
    /// bouncer in transaction mode causes this if the statement cache is on.
    #[error(
        "a prepared statement was lost: take another connection, and turn the statement cache off behind a \
         bouncer in transaction mode"
    )]
    PreparedStatementLost(#[source] diesel::result::Error),

    /// A text to be written has a NUL byte, or a character that the database's encoding lacks.
    ///
    /// No row can hold such a text. So a method that only reads returns nothing instead of this error.
    #[error("the database's encoding cannot hold the text: remove NUL bytes and characters that it lacks")]
    UnencodableText(#[source] diesel::result::Error),

    /// The database holds a text that has no form in UTF-8. This is possible if its encoding is `SQL_ASCII`, or one with
    /// bytes that UTF-8 has no character for, such as `WIN1252`. The source shows the bytes.
    #[error(
        "a stored text cannot be read as UTF-8: find the text by the bytes in the source, and correct it"
    )]
    InvalidText(#[source] diesel::result::Error),

    /// The server refused a statement for another reason.
    #[error("a statement failed: see the source for the reason")]
    Query(#[source] diesel::result::Error),

    /// libpq cannot read the connection string, or the server or a bouncer refuses a parameter in it, such as one of its
    /// `options`. The message is dropped, because it may quote the password.
    #[error(
        "the connection string is invalid: check its syntax and parameters, and percent-encode special characters in a \
         URL"
    )]
    ConnectionString,

    /// No host of the connection string has an address: a name is wrong, or DNS does not answer.
    #[error("the server's host has no address: check the host's name, and that DNS answers")]
    UnknownHost,

    /// The server refuses the user: the password is wrong, the role does not exist or may not log in, or
    /// `pg_hba.conf` has no line for it.
    #[error("the server refused the login: check the user, the password and `pg_hba.conf`")]
    AccessDenied,

    /// The server does not have the database of the connection string.
    #[error("the database does not exist: check its name in the connection string, or create it")]
    UnknownDatabase,

    /// The connection string or the server requires TLS, and a TLS connection cannot be made. libpq may be built
    /// without TLS, the server may not offer it, or its certificate may not be accepted.
    #[error(
        "a TLS connection cannot be made: check `sslmode` and the certificates, or link a libpq with TLS"
    )]
    Tls,

    /// The server cannot be reached, or does not accept connections. The source names the server and the reason.
    #[error(
        "the connection to the server failed: check that it runs, can be reached and accepts connections"
    )]
    Connect(#[source] diesel::ConnectionError),

    /// All connections of the pool were in use, and none was returned within the pool's `wait`. If the error comes from an
    /// r2d2 pool and not from [`Pool::get`](crate::Pool::get), connecting may also have taken longer than the wait.
    #[error(
        "the pool had no free connection: return connections sooner, make the pool larger, or wait longer"
    )]
    Pool(#[source] diesel::r2d2::PoolError),

    /// The server is older than the oldest version that the crate supports. Nothing was changed.
    #[error("PostgreSQL {version} is not supported: use PostgreSQL {oldest} or newer")]
    UnsupportedServer {
        /// The server's version.
        version: String,
        /// The oldest major version that is supported.
        oldest: i32,
    },

    /// A check before the migration found obstacles, which the report names. The migrations that they concern have
    /// changed nothing.
    #[error("the database is not ready to be migrated: {0}")]
    NotReady(Box<crate::Report>),

    /// A migration waited for other sessions until its time was over. The steps before it are done, and the next call
    /// continues after them.
    #[error(
        "the migration ({step}) waits for another session ({holders}): end that session or wait, then migrate again"
    )]
    MigrationWaits {
        /// The migration's name.
        step: String,
        /// The sessions that the migration waited for.
        holders: crate::Holders,
    },

    /// A migration failed and was rolled back. The migrations before it are applied. Correct what the source names,
    /// and migrate again. If the advice is [`Advice::RetryTransaction`], just migrate again.
    #[error("a migration failed: correct what the source names, then migrate again")]
    Migration(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// A text cannot be parsed as a [`KeyCursor`](crate::KeyCursor), or as another cursor.
    #[error(
        "the text is not a cursor of this list: pass the text of a cursor unchanged, or start without a cursor"
    )]
    KeyCursor,

    /// A text cannot be parsed as an [`EventPosition`](crate::EventPosition).
    #[error("the text is not a position of an event: start from the beginning, or restore what was stored")]
    EventPosition,
}

/// What to do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Run the whole transaction again on the same connection. The server rolled it back, and the next attempt may
    /// succeed. [`Transaction`](crate::Transaction) does this.
    RetryTransaction,
    /// Drop the connection, wait a moment, take another connection, and repeat the work.
    ///
    /// A pool that was made by [`PoolConfig`](crate::PoolConfig) drops such a connection when it is returned: see
    /// [`PoolManager`](crate::PoolManager).
    Reconnect,
    /// Take another connection, and read the rows to learn whether the change was committed.
    CheckOutcome,
    /// Report the error. The same attempt would fail again.
    Fail,
}

impl Advice {
    /// Whether the connection must not be used again.
    pub(crate) fn requires_another_connection(self) -> bool {
        matches!(self, Self::Reconnect | Self::CheckOutcome)
    }
}

impl Error {
    /// Returns what to do about this error. For an error that the crate does not recognise, it is [`Advice::Fail`].
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Deadlock(source)
            | Self::SerializationFailure(source)
            | Self::LockTimeout(source)
            | Self::StatementTimeout(source)
            | Self::ReadOnly(source)
            | Self::ConnectionLost(source)
            | Self::TransactionAborted(source)
            | Self::UniqueViolation { source, .. }
            | Self::SchemaMismatch(source)
            | Self::PreparedStatementLost(source)
            | Self::UnencodableText(source)
            | Self::InvalidText(source)
            | Self::Query(source) => Kind::of(source).advice(),
            // The finished steps stay applied, and the next call continues after them.
            Self::MigrationWaits { .. } => Advice::RetryTransaction,
            Self::CommitUnknown(_) => Advice::CheckOutcome,
            Self::Connect(_) | Self::UnknownHost | Self::Pool(_) => Advice::Reconnect,
            Self::Migration(source) => classify::advice_on_migration(source.as_ref()),
            Self::NotInTransaction
            | Self::AlreadyInTransaction
            | Self::RepeatableRead
            | Self::LockedElsewhere(_)
            | Self::LockLost(_)
            | Self::KeyExists(_)
            | Self::KeyHashExists(_)
            | Self::UnknownTenant(_)
            | Self::UnknownUser(_)
            | Self::TooLong { .. }
            | Self::NulByte { .. }
            | Self::Negative { .. }
            | Self::TooManyDigits { .. }
            | Self::InBatch { .. }
            | Self::TooManyBuckets(_)
            | Self::BoundariesNotAscending
            | Self::CostNotANumber { .. }
            | Self::PositionElsewhere
            | Self::UnreadableEvent(_)
            | Self::EventsNotRecorded
            | Self::ConnectionString
            | Self::UnsupportedServer { .. }
            | Self::NotReady(_)
            | Self::AccessDenied
            | Self::UnknownDatabase
            | Self::Tls
            | Self::KeyCursor
            | Self::EventPosition => Advice::Fail,
        }
    }
}

impl From<diesel::result::Error> for Error {
    fn from(source: diesel::result::Error) -> Self {
        let source = without_values(source);
        match Kind::of(&source) {
            Kind::Deadlock => Self::Deadlock(source),
            Kind::SerializationFailure => Self::SerializationFailure(source),
            Kind::LockTimeout => Self::LockTimeout(source),
            Kind::StatementTimeout => Self::StatementTimeout(source),
            Kind::ReadOnly => Self::ReadOnly(source),
            Kind::ConnectionLost => Self::ConnectionLost(source),
            Kind::CommitUnknown => Self::CommitUnknown(source),
            Kind::TransactionAborted => Self::TransactionAborted(source),
            Kind::UniqueViolation { constraint } => Self::UniqueViolation { constraint, source },
            Kind::SchemaMismatch => Self::SchemaMismatch(source),
            Kind::PreparedStatementLost => Self::PreparedStatementLost(source),
            Kind::UnencodableText => Self::UnencodableText(source),
            Kind::InvalidText => Self::InvalidText(source),
            Kind::Other => Self::Query(source),
        }
    }
}

impl From<diesel::ConnectionError> for Error {
    fn from(error: diesel::ConnectionError) -> Self {
        connect_error(error)
    }
}

impl From<diesel::r2d2::PoolError> for Error {
    fn from(error: diesel::r2d2::PoolError) -> Self {
        connect::pool_error(error)
    }
}

/// The advice of the error that an engine's own error wraps. [`Advice::Fail`] if it wraps no error of this crate or
/// of Diesel.
///
/// A transparent wrapper skips the [`Error`] in it and returns Diesel's error as its source, so the function looks for
/// both types.
pub(crate) fn advice_on(error: &(dyn std::error::Error + 'static)) -> Advice {
    known_advice_on(error).unwrap_or(Advice::Fail)
}

fn known_advice_on(error: &(dyn std::error::Error + 'static)) -> Option<Advice> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| {
        let ours = error.downcast_ref().map(Error::advice);
        ours.or_else(|| error.downcast_ref().map(|error| Kind::of(error).advice()))
    })
}

fn key_or_tenant(tenant_id: &TenantId, key_id: Option<&KeyId>) -> String {
    key_id.map_or_else(|| format!("tenant {tenant_id}"), |key_id| format!("key {key_id}"))
}
