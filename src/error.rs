//! Why a call did not answer, and what to do about it. What a failure is stands in `classify`; how a
//! failed connection is told apart stands in `connect`.

mod classify;
mod connect;
mod violation;

use self::classify::Kind;
use self::violation::without_values;
use crate::{KeyId, ParseEventPositionError, ParseKeyCursorError, TenantId};

pub use self::connect::ConnectFailure;
pub(crate) use self::connect::connect_error;
pub(crate) use self::violation::{is_constraint, violated_constraint};

/// A `Result` whose error is this crate's, unless another is named.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did not answer. [`advice`](Error::advice) says what to do about it.
///
/// "Not found" is not among the reasons: it is `None`. A message says what to do and leaves what the
/// database said to [`source`](std::error::Error::source). Neither shows a secret. The server's `DETAIL`
/// holds values of rows, hashes among them, so it is not kept: of a refused row, the source has the
/// table, the column and the constraint.
///
/// Diesel (2.3.14, the newest at this writing) does not pass the server's error codes on, and a client
/// cannot ask for untranslated messages, so some kinds are known by the server's message only: deadlock,
/// both timeouts, an aborted transaction, a lost prepared statement and a schema mismatch. The text must be
/// the English one. On a server whose `lc_messages` is another language these arrive as [`Error::Query`],
/// which nobody retries; `ALTER DATABASE .. SET lc_messages = 'C'` mends that.
///
/// ```
/// use api_keys_driver::{Advice, KeysDriver, PoolConfig, Result, TenantId};
///
/// /// Counts a tenant's keys, once more on another connection if the first one is gone.
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
    /// A row was to be locked or changed outside a transaction. Nothing was sent to the server.
    #[error("there is no transaction: lock and change a key inside `connection.transaction(..)`")]
    NotInTransaction,

    /// A transaction was to begin within another. Nothing was sent to the server.
    #[error("there is a transaction already: begin this one on a connection that has none")]
    AlreadyInTransaction,

    /// A tenant was to be locked in a `REPEATABLE READ` transaction, which sees nothing that was committed
    /// after its first statement. The tenant is locked all the same, until the transaction ends.
    #[error(
        "a REPEATABLE READ transaction does not see the keys that others inserted: lock a tenant at another level"
    )]
    RepeatableRead,

    /// A [`LockedKey`](crate::LockedKey) came to the driver of a connection that does not hold its lock,
    /// or whose connection was replaced by another since.
    /// Nothing was sent to the server.
    #[error("key {0} was locked through another connection: change it through the one that locked it")]
    LockedElsewhere(KeyId),

    /// The row of a locked key is not the one that was locked. Its transaction removed it or moved it to
    /// another tenant; or the transaction or the savepoint that locked it was ended by hand, and another
    /// transaction changed the row since. Nothing was changed.
    #[error("the lock of key {0} is lost, and its row is gone or changed: lock it again, and decide again")]
    LockLost(KeyId),

    /// A key was to be inserted whose id a key has, of whichever tenant. Nothing was inserted.
    #[error("there is a key {0}: insert the new one with another id")]
    KeyExists(KeyId),

    /// A key was to be inserted whose hash another key has, of whichever tenant. Nothing was inserted. The id
    /// is that of the new key.
    #[error("another key has the hash of the new key {0}: make another secret")]
    KeyHashExists(KeyId),

    /// A key was to be inserted for a tenant that the database does not know. Nothing was inserted.
    #[error("there is no tenant {0}: make the tenant first")]
    UnknownTenant(TenantId),

    /// A key was to be inserted for a user that the database does not know. Nothing was inserted.
    #[error("there is no user {0}: make the user first, or leave the user out")]
    UnknownUser(String),

    /// A text does not fit its column. Nothing was sent to the server.
    #[error("{column} holds {limit} characters at most: shorten the text")]
    TooLong {
        /// The column.
        column: &'static str,
        /// The most characters that it holds.
        limit: usize,
    },

    /// A text holds a NUL byte, which no text of PostgreSQL can. Nothing was sent to the server.
    #[error("{column} holds a NUL byte: leave it out")]
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
    #[error("{column} holds six digits before the decimal point and four behind it: round the amount first")]
    NotExact {
        /// The column.
        column: &'static str,
    },

    /// One element of a batch is refused, and with it the batch. Nothing was sent to the server.
    #[error("element {nth} of the batch, counted from 0, is refused: correct it, or leave it out")]
    InBatch {
        /// Which element, counted from 0.
        nth: usize,
        /// Why it is refused.
        source: Box<Error>,
    },

    /// A usage series would have had so many buckets. Nothing was sent to the server.
    #[error("a series of {0} buckets is too long: ask for a shorter range, or for days instead of hours")]
    TooManyBuckets(i64),

    /// The boundaries of usage went back at some place. Nothing was sent to the server.
    #[error("the boundaries do not ascend: sort them")]
    BoundariesNotAscending,

    /// A call that usage was asked of has a cost that is not a finite number (`NaN`).
    #[error(
        "a call of {who} has a cost that is not a number: set `proxy_calls.cost_cents` of that call, or ask for \
         a range without it", who = key_or_tenant(tenant_id, key_id.as_ref())
    )]
    CostNotANumber {
        /// The tenant whose call it is.
        tenant_id: TenantId,
        /// The key that the call was made with; `None` where the usage of a whole tenant was asked for.
        key_id: Option<KeyId>,
    },

    /// A position of an event is from another server, from before a failover, or from before the triggers
    /// were made anew. What was followed to it may never have happened here.
    #[error(
        "the position is not from this server as it is now: read the keys themselves, and follow from a new head"
    )]
    PositionElsewhere,

    /// The tenant or the key of the next event is not UTF-8.
    #[error("the event at {0} names a key that is not UTF-8: go on from there to step over it")]
    UnreadableEvent(crate::EventPosition),

    /// The triggers that record events are missing or disabled, so changes of keys are not told.
    #[error("changes of keys are not recorded: run `migrate`, and enable the triggers of `api_keys`")]
    EventsNotRecorded,

    /// Two transactions waited for each other, and the server gave this one up.
    #[error("the transaction was given up to end a deadlock: run it again")]
    Deadlock(#[source] diesel::result::Error),

    /// A transaction above `READ COMMITTED` met a concurrent change.
    #[error("the transaction met a concurrent change: run it again")]
    SerializationFailure(#[source] diesel::result::Error),

    /// Another transaction held a lock for longer than `lock_timeout`.
    #[error("another transaction held the lock for too long: run the transaction again")]
    LockTimeout(#[source] diesel::result::Error),

    /// A statement took longer than `statement_timeout`.
    #[error("a statement took too long: ask for less, or raise `statement_timeout`")]
    StatementTimeout(#[source] diesel::result::Error),

    /// The server or the session takes no writes and no locks. After a failover a connection may still
    /// lead to what is now a replica.
    #[error("the server takes no writes: connect to the primary")]
    ReadOnly(#[source] diesel::result::Error),

    /// The connection is gone. What it had not committed is undone. A commit that was under way may have
    /// happened: [`Transaction`](crate::Transaction) reports that as [`Error::CommitUnknown`].
    #[error("the connection is lost: take another, and begin again")]
    ConnectionLost(#[source] diesel::result::Error),

    /// The connection was lost between the commit and the server's answer, or a Citus coordinator lost a
    /// shard's server then: it happened, or it did not.
    #[error("the connection was lost during the commit: look whether it happened before doing it again")]
    CommitUnknown(#[source] diesel::result::Error),

    /// An earlier statement of the transaction failed and its error was not passed on. The server rolled
    /// the transaction back.
    #[error("the transaction is undone: one of its statements failed, and the work must return that error")]
    TransactionAborted(#[source] diesel::result::Error),

    /// A value was there already that may be there only once.
    #[error("{constraint} allows a value only once, and it is there already")]
    UniqueViolation {
        /// The constraint or index that refused the row.
        constraint: String,
        /// What the server said.
        source: diesel::result::Error,
    },

    /// A table, a column or a value in it is not what this crate was built for.
    #[error("the database does not fit this version of the crate: run `migrate`, or use another version")]
    SchemaMismatch(#[source] diesel::result::Error),

    /// The server has not the prepared statement that the connection counts on: the tables changed under
    /// the connection, or a bouncer hands its sessions to others.
    #[error(
        "a prepared statement is lost: take another connection, and behind a transaction-mode bouncer \
         turn the statement cache off"
    )]
    PreparedStatementLost(#[source] diesel::result::Error),

    /// A text was to be written that the database cannot hold: it has a NUL byte, or a character that the
    /// database's encoding lacks. No row has such a text, so a statement that only reads finds nothing instead
    /// of failing with this.
    #[error("the database's encoding has no such text: leave out NUL bytes, and characters that it lacks")]
    UnencodableText(#[source] diesel::result::Error),

    /// The database holds a text that is not UTF-8, as a database whose encoding is `SQL_ASCII` may. The
    /// source shows the bytes.
    #[error("a stored text is not valid UTF-8: find it by the bytes that the source shows, and mend it")]
    InvalidText(#[source] diesel::result::Error),

    /// The server refused a statement for another reason.
    #[error("a statement failed")]
    Query(#[source] diesel::result::Error),

    /// The connection string cannot be read. What libpq said is left out, because it may quote the
    /// password.
    #[error("the connection string is not understood: check it, and percent-encode what a URL cannot hold")]
    ConnectionString,

    /// No host of the connection string has an address at the moment: DNS does not answer, or a name is
    /// wrong.
    #[error("no address is known for the server's host: see that its name is right and that DNS answers")]
    UnknownHost,

    /// The server answered and does not let this user in: a wrong password, a role that does not exist or
    /// may not log in, or a line missing in `pg_hba.conf`.
    #[error("the server does not let this user in: check the user, the password and `pg_hba.conf`")]
    AccessDenied,

    /// The server answered and has no such database.
    #[error("the server has no such database: check its name in the connection string, or create it")]
    UnknownDatabase,

    /// The connection string or the server asks for a TLS connection that cannot be made: libpq is built
    /// without TLS, the server does not offer it, or its certificate is not accepted.
    #[error(
        "a TLS connection cannot be made: check `sslmode` and the certificates, or link a libpq with TLS"
    )]
    Tls,

    /// The server cannot be reached, or takes no connections at the moment. The source names the server
    /// and says why.
    #[error("there is no connection to the server: see that it runs and can be reached")]
    Connect(#[source] diesel::ConnectionError),

    /// All connections of the pool were in use for as long as `get` waits.
    #[error("all connections of the pool are in use: give one back sooner, or make the pool larger")]
    Pool(#[source] diesel::r2d2::PoolError),

    /// The server is older than any that the crate works on. Nothing was changed.
    #[error("the server is PostgreSQL {version}: use PostgreSQL {oldest} or newer")]
    UnsupportedServer {
        /// The server's version.
        version: String,
        /// The oldest major version that is supported.
        oldest: i32,
    },

    /// Something is in the way of the migration that can be known beforehand. Nothing was changed by what
    /// is named here.
    #[error("the database is not ready to be migrated: {0}")]
    NotReady(Box<crate::Report>),

    /// A migration waited for other sessions for as long as it was allowed to. What was done stands, and
    /// the next call goes on from there.
    #[error(
        "the migration ({step}) waits for another session ({holders}): end that one or wait, then migrate again"
    )]
    MigrationWaits {
        /// The migration's name.
        step: String,
        /// The sessions that held it up.
        holders: crate::Holders,
    },

    /// A migration stopped. Those before it stand, and nothing of it does. Mend what the source names
    /// and migrate again; where the advice is [`Advice::RetryTransaction`], only migrate again.
    #[error("a migration stopped")]
    Migration(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// A text is not the text of a [`KeyCursor`](crate::KeyCursor).
    #[error(transparent)]
    KeyCursor(#[from] ParseKeyCursorError),

    /// A text is not the text of an [`EventPosition`](crate::EventPosition).
    #[error(transparent)]
    EventPosition(#[from] ParseEventPositionError),
}

/// What to do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Run the whole transaction again, on the same connection: the server undid it, and it may well
    /// succeed. [`Transaction`](crate::Transaction) does this.
    RetryTransaction,
    /// Drop the connection, take another after a pause, and begin again there.
    ///
    /// A driver's call and [`Transaction`](crate::Transaction) mark a connection on which this is the advice, so a
    /// pool that it is given back to drops it, although it may look healthy. An engine's own statement is
    /// only seen within [`Transaction`](crate::Transaction).
    Reconnect,
    /// Take another connection and read what is there. Only that tells whether the transaction happened.
    CheckOutcome,
    /// Give up: to do the same again would fail the same way.
    Fail,
}

impl Advice {
    /// Whether nothing more is to be sent on the connection.
    pub(crate) fn condemns_the_connection(self) -> bool {
        matches!(self, Self::Reconnect | Self::CheckOutcome)
    }
}

impl Error {
    /// Says what to do about this error. What is not recognised is not retried: [`Advice::Fail`].
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
            // What was done stands, and another call may well get further.
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
            | Self::NotExact { .. }
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
            | Self::KeyCursor(_)
            | Self::EventPosition(_) => Advice::Fail,
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

/// The advice of what an engine's own error wraps; of one that wraps nothing of ours, [`Advice::Fail`].
///
/// A transparent wrapper hides the [`Error`] in it and shows what Diesel said, so both are looked for.
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
