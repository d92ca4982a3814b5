mod auth;
mod event_position;
mod events;
mod freeze;
mod key;
mod key_hash;
mod locked_key;
mod new_key;
mod revocation;
mod rotation;
mod try_lock;
mod usage;
mod uses;

use diesel::prelude::*;

pub use self::auth::KeyAuthSnapshot;
pub use self::event_position::{EventPosition, InvalidEventPosition};
pub use self::events::KeyEventSnapshot;
pub use self::freeze::{Freeze, KeyFreezeSnapshot};
pub use self::key::KeySnapshot;
pub use self::key_hash::KeyHash;
pub use self::locked_key::LockedKey;
pub use self::new_key::NewKey;
pub use self::try_lock::TryLock;
pub use self::usage::KeyUsageSnapshot;
pub use self::uses::KeyUse;

use crate::schema::api_keys;
use crate::{KeyId, Page, Result, TenantId};

/// Reads and writes the keys of any tenant, from their first day to their last, for engines.
///
/// A driver borrows a connection for as long as it is needed and costs nothing to make. It decides
/// nothing: no status is checked, no clock is read, nothing is retried, and no transaction is begun
/// or ended. Each method is one statement, confined to the tenant, and sees what the caller's
/// transaction sees; [`fetch_key_by_hash`](Self::fetch_key_by_hash) and
/// [`fetch_key_events_after`](Self::fetch_key_events_after) are for those who know no tenant yet. Synthetic keys are keys like any other here; customers look through
/// [`ApiKeysFacadeDriver`](crate::ApiKeysFacadeDriver), which hides them.
///
/// Times are UTC, in whole microseconds as PostgreSQL keeps them: finer digits are cut off.
///
/// # Errors
///
/// Each method returns [`Error::Query`](crate::Error::Query) when the server refuses the statement
/// or cannot be reached. An id that holds a NUL byte, and a time outside PostgreSQL's range, are
/// refused by the server like this.
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
/// # let database = throwaway_postgres::migrated().unwrap();
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

    /// Fetches a page of the tenant's keys, newest first, synthetic and frozen ones too.
    ///
    /// The order is `created_at DESC, id DESC`, so keys made in the same microsecond keep their places.
    pub fn fetch_keys(&mut self, tenant_id: &TenantId, page: Page) -> Result<Vec<KeySnapshot>> {
        let keys = KeySnapshot::query()
            .filter(api_keys::tenant_id.eq(tenant_id))
            .order((api_keys::created_at.desc(), api_keys::id.desc()))
            .limit(page.limit.into())
            .offset(page.offset.into())
            .load(self.conn)?;
        Ok(keys)
    }

    /// Counts the keys that [`fetch_keys`](Self::fetch_keys) pages through.
    pub fn count_keys(&mut self, tenant_id: &TenantId) -> Result<i64> {
        let count =
            api_keys::table.filter(api_keys::tenant_id.eq(tenant_id)).count().get_result(self.conn)?;
        Ok(count)
    }

    /// Fetches one key; `None` for a missing key and for another tenant's.
    pub fn fetch_key_by_id(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Result<Option<KeySnapshot>> {
        let key = KeySnapshot::query()
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .get_result(self.conn)
            .optional()?;
        Ok(key)
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
