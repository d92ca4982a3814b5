use crate::KeyId;

/// A `Result` whose error is this crate's, unless another is named.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did not answer.
///
/// "Not found" is not among the reasons: it is `None`. A message says what to do and leaves what the
/// database said to [`source`](std::error::Error::source). Neither shows a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A row was to be locked or changed outside a transaction. Nothing was sent to the server.
    #[error("there is no transaction: lock and change a key inside `connection.transaction(..)`")]
    NotInTransaction,

    /// A [`LockedKey`](crate::LockedKey) came to the driver of a connection that does not hold its lock.
    /// Nothing was sent to the server.
    #[error("key {0} was locked through another connection: change it through the one that locked it")]
    LockedElsewhere(KeyId),

    /// The row of a locked key is gone: the same transaction deleted it or moved it to another tenant.
    #[error("the row of key {0} is gone although it was locked: its own transaction removed it")]
    LockedRowGone(KeyId),

    /// The server refused a statement, the connection broke, or a row could not be read.
    #[error("a statement failed")]
    Query(#[from] diesel::result::Error),

    /// The pool gave no connection in time.
    #[error("the pool gave no connection")]
    Pool(#[from] diesel::r2d2::PoolError),

    /// A migration stopped. Those before it stand, and nothing of it does: mend what the source names,
    /// then migrate again.
    #[error("a migration stopped")]
    Migration(#[source] Box<dyn std::error::Error + Send + Sync>),
}
