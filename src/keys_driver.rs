mod auth;
mod event_position;
mod events;
mod freeze;
mod key;
mod key_hash;
mod keys_with_usage;
mod listed_key;
mod locked_key;
mod new_key;
mod revocation;
mod rotation;
mod try_lock;
mod usage;
mod usage_series;
mod uses;

use diesel::prelude::*;

pub use self::auth::KeyAuthSnapshot;
pub use self::event_position::{EventPosition, ParseEventPositionError};
pub use self::events::KeyEventSnapshot;
pub use self::freeze::{Freeze, KeyFreezeSnapshot};
pub use self::key::KeySnapshot;
pub use self::key_hash::KeyHash;
pub use self::locked_key::LockedKey;
pub use self::new_key::NewKey;
pub use self::try_lock::TryLock;
pub use self::usage::KeyUsageSnapshot;
pub use self::usage_series::{Bucket, UsageBucket};
pub use self::uses::KeyUse;

use self::listed_key::ListedKey;
use crate::listing::{self, Count, CountUpTo};
use crate::schema::api_keys;
use crate::{KeyCursor, KeyId, Page, Result, TenantId};

/// Reads and writes the keys of any tenant, from their first day to their last, for engines.
///
/// A driver borrows a connection for as long as it is needed and costs nothing to make. It decides
/// nothing: no status is checked, no clock is read, nothing is retried, and no transaction is begun
/// or ended. Each method is one statement, confined to the tenant, and sees what the caller's
/// transaction sees; only [`fetch_key_by_hash`](Self::fetch_key_by_hash) and
/// [`fetch_key_events_after`](Self::fetch_key_events_after) are for those who know no tenant yet.
/// Synthetic keys are keys like any other here; customers look through
/// [`ApiKeysFacadeDriver`](crate::ApiKeysFacadeDriver), which hides them.
///
/// Times are UTC, in whole microseconds as PostgreSQL keeps them: finer digits are cut off.
///
/// # Errors
///
/// Each method says with [`Error`](crate::Error) why the server did not answer. An id that holds a NUL
/// byte, and a time outside PostgreSQL's range, are refused as [`Error::Query`](crate::Error::Query).
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

    /// Fetches a page of the tenant's keys, newest first, synthetic and frozen ones too.
    ///
    /// The order is `created_at DESC, id DESC`, so keys made in the same microsecond keep their places.
    pub fn fetch_keys(&mut self, tenant_id: &TenantId, page: Page) -> Result<Vec<KeySnapshot>> {
        let scope = api_keys::tenant_id.eq(tenant_id);
        listing::fetch_page(self.conn, scope, page, |key: ListedKey| key.of(tenant_id))
    }

    /// Fetches the keys behind a cursor, or the newest, in the order of [`fetch_keys`](Self::fetch_keys).
    ///
    /// Unlike an offset, a cursor costs the same at any depth, and is not moved by keys that come and go:
    /// a walk meets each key that stands throughout exactly once. See [`KeyCursor`].
    pub fn fetch_keys_after(
        &mut self,
        tenant_id: &TenantId,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        let scope = api_keys::tenant_id.eq(tenant_id);
        listing::fetch_after(self.conn, scope, cursor, limit, |key: ListedKey| key.of(tenant_id))
    }

    /// Counts the keys that [`fetch_keys`](Self::fetch_keys) pages through.
    ///
    /// The server counts them one by one; for "more than 100" ask
    /// [`count_keys_up_to`](Self::count_keys_up_to).
    pub fn count_keys(&mut self, tenant_id: &TenantId) -> Result<i64> {
        Ok(Count(api_keys::tenant_id.eq(tenant_id)).get_result(self.conn)?)
    }

    /// Counts the tenant's keys, but no further than a bound: the answer is never above it.
    ///
    /// ```
    /// # use api_keys_driver::{KeysDriver, Result, TenantId};
    /// # use diesel::PgConnection;
    /// /// "42", or "100+".
    /// fn label(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<String> {
    ///     let count = KeysDriver::new(conn).count_keys_up_to(tenant_id, 101)?;
    ///     Ok(if count > 100 { "100+".into() } else { count.to_string() })
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # assert_eq!(label(&mut database.connect().unwrap(), &"nobody".into()).unwrap(), "0");
    /// ```
    pub fn count_keys_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> Result<i64> {
        Ok(CountUpTo::new(api_keys::tenant_id.eq(tenant_id), bound).get_result(self.conn)?)
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
