//! The engines' driver. Each file of the folder holds one topic: its methods, and the types they take and
//! return. How a list is paged and counted is in `listing`; what customers see is in
//! `api_keys_facade_driver`.

#![deny(clippy::disallowed_methods)]

mod active_by_time;
mod auth;
mod calls;
mod changes;
mod counts;
mod delete;
mod events;
mod expiry;
mod find;
mod freeze;
mod key;
mod key_hash;
mod list;
mod listed_key;
mod locked_key;
mod locked_tenant;
mod new_key;
mod new_keys;
mod refusal;
mod revocation;
mod successor;
mod try_lock;
mod unused;
mod usage;
mod uses;

use std::fmt;

use diesel::prelude::*;

pub use self::auth::KeyAuthSnapshot;
pub use self::calls::NewCall;
pub use self::changes::KeyChanges;
pub use self::events::{
    Compaction, DeniedKeySnapshot, EventPosition, KeyEventCursor, KeyEventSnapshot, ParseEventPositionError,
};
pub use self::freeze::{Freeze, KeyFreezeSnapshot};
pub use self::key::KeySnapshot;
pub use self::key_hash::KeyHash;
pub use self::locked_key::LockedKey;
pub use self::locked_tenant::LockedTenant;
pub use self::new_key::NewKey;
pub use self::successor::KeySuccessor;
pub use self::try_lock::TryLock;
pub use self::usage::{Bucket, KeyUsageSnapshot, UsageBucket, UsageDrift, UsageRecount, UsageRollUp};
pub use self::uses::KeyUse;

/// Reads and writes the keys of any tenant, from their first day to their last, for engines.
///
/// A driver borrows a connection for as long as it is needed and costs nothing to make. It decides
/// nothing: no status is checked, no clock is read, nothing is retried, and no transaction is begun
/// or ended. Each method is one statement, confined to the tenant, and sees what the caller's
/// transaction sees; only [`fetch_key_by_hash`](Self::fetch_key_by_hash) and
/// [`fetch_keys_of_any_tenant_by_prefix`](Self::fetch_keys_of_any_tenant_by_prefix), which find the tenant out, and
/// what follows all keys (`fetch_key_events_after` and `_head`, `fetch_denied_keys_after`, `compact_key_events`)
/// carry none.
/// Synthetic keys are keys like any other here; customers look through
/// [`ApiKeysFacadeDriver`](crate::ApiKeysFacadeDriver), which hides them.
///
/// Times are UTC, in whole microseconds as PostgreSQL keeps them: finer digits are cut off.
///
/// # Errors
///
/// Each method says with [`Error`](crate::Error) why the server did not answer. A text that no row can hold,
/// because it has a NUL byte or a character that the database's encoding lacks, finds nothing, and is
/// [`Error::UnencodableText`](crate::Error::UnencodableText) where it would be written. In a transaction the
/// server refuses further statements after either. A time outside PostgreSQL's range is `infinity` or
/// `-infinity`, and a stored time outside that of [`DateTime`](chrono::DateTime) is the last or the first
/// moment that it holds.
///
/// ```
/// use api_keys_driver::{KeysDriver, Page, Result, TenantId};
/// use diesel::PgConnection;
///
/// /// The names of a tenant's newest keys.
/// fn newest_names(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<Vec<String>> {
///     let keys = KeysDriver::new(conn).fetch_keys(tenant_id, Page::default())?;
///     Ok(keys.into_iter().map(|key| key.name).collect())
/// }
/// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
/// # let mut conn = database.connect().unwrap();
/// # assert!(newest_names(&mut conn, &TenantId::from("nobody")).unwrap().is_empty());
/// ```
pub struct KeysDriver<'c> {
    conn: &'c mut PgConnection,
}

impl<'c> KeysDriver<'c> {
    /// Borrows a connection.
    pub fn new(conn: &'c mut PgConnection) -> Self {
        Self { conn }
    }

    /// Lends the connection, for the engine's own statements in the same transaction.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.conn
    }
}

/// Shows no field: Diesel's connection has no `Debug`.
impl fmt::Debug for KeysDriver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeysDriver").finish_non_exhaustive()
    }
}

/// Borrows a connection as a [`KeysDriver`]: the name that existing callers know.
pub fn get_keys_driver(conn: &mut PgConnection) -> KeysDriver<'_> {
    KeysDriver::new(conn)
}

/// Borrows a connection as a [`KeysDriver`]: the name that existing callers know. It does not keep them from writing.
pub fn get_keys_read_driver(conn: &mut PgConnection) -> KeysDriver<'_> {
    KeysDriver::new(conn)
}

/// Borrows a connection as a [`KeysDriver`]: the name that existing callers know.
pub fn get_keys_write_driver(conn: &mut PgConnection) -> KeysDriver<'_> {
    KeysDriver::new(conn)
}

/// A number of changed rows, in the type of all counts: PostgreSQL's `bigint`.
fn row_count(changed: usize) -> i64 {
    i64::try_from(changed).unwrap_or(i64::MAX)
}
