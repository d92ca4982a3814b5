//! The driver for engines. Each file of the folder has one topic: its methods, and the types that they take and return.
//! Statements of lists and counts are in `listing`. The customer's view is in `api_keys_facade_driver`.

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
pub use self::events::{Compaction, DeniedKeySnapshot, EventPosition, KeyEventSnapshot};
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

/// Reads and changes keys, for engines. It covers the whole life of a key, from its insertion to its deletion.
///
/// A driver borrows a connection, and costs nothing to make. It makes no decisions: it checks no status, reads no clock,
/// retries nothing, and does not begin or end a transaction. Each method sends one statement, which sees what the
/// caller's transaction sees. Synthetic keys (keys that test scenarios made) are included;
/// [`ApiKeysFacadeDriver`](crate::ApiKeysFacadeDriver) hides them.
///
/// Each statement is limited to one tenant, except in these methods:
///
/// - [`fetch_key_by_hash`](Self::fetch_key_by_hash) and
///   [`fetch_keys_of_any_tenant_by_prefix`](Self::fetch_keys_of_any_tenant_by_prefix), because their caller does not
///   know the tenant
/// - `fetch_key_events_after`, `fetch_key_events_head`, `fetch_denied_keys_after` and `compact_key_events`, because they
///   concern the keys of all tenants
///
/// Times are in UTC, in whole microseconds, as in PostgreSQL. Finer digits are cut off. A time outside PostgreSQL's range
/// becomes `infinity` or `-infinity`. A stored time outside the range of [`DateTime`](chrono::DateTime) is read as its
/// last or first time.
///
/// # Errors
///
/// Each method can return the errors of [`Error`](enum@crate::Error) that come from the server or the connection. The
/// documentation of a method names only its additional errors.
///
/// No row can hold a text with a NUL byte, or with a character that the database's encoding lacks. A method that reads
/// such a text finds nothing, and a method that writes it returns
/// [`Error::UnencodableText`](crate::Error::UnencodableText). In both cases, the server refuses further statements in the
/// same transaction.
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
    /// Makes a driver that borrows a connection. Nothing is sent.
    pub fn new(conn: &'c mut PgConnection) -> Self {
        Self { conn }
    }

    /// Returns the connection, for the engine's own statements in the same transaction.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.conn
    }
}

/// Shows no field, because Diesel's connection does not implement `Debug`.
impl fmt::Debug for KeysDriver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeysDriver").finish_non_exhaustive()
    }
}

/// Makes a [`KeysDriver`]. It is the same as [`KeysDriver::new`], under the name that existing callers use.
pub fn get_keys_driver(conn: &mut PgConnection) -> KeysDriver<'_> {
    KeysDriver::new(conn)
}

/// Makes a [`KeysDriver`]. It is the same as [`KeysDriver::new`], under the name that existing callers use. The driver
/// can also write.
pub fn get_keys_read_driver(conn: &mut PgConnection) -> KeysDriver<'_> {
    KeysDriver::new(conn)
}

/// Makes a [`KeysDriver`]. It is the same as [`KeysDriver::new`], under the name that existing callers use.
pub fn get_keys_write_driver(conn: &mut PgConnection) -> KeysDriver<'_> {
    KeysDriver::new(conn)
}

/// Converts a number of changed rows to `i64`, the type of all counts.
fn row_count(changed: usize) -> i64 {
    i64::try_from(changed).unwrap_or(i64::MAX)
}
