//! The customer's view of a tenant's keys, and its two snapshots. It is read-only and hides synthetic keys. Methods for
//! engines are in [`KeysDriver`](crate::KeysDriver).

#![deny(clippy::disallowed_methods)]

use std::convert::identity;
use std::fmt;

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;

use crate::listing::{Listing, shown};
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::{MaybeTime, Time};
use crate::{KeyCursor, KeyId, KeyStatus, Page, Result, TenantId};

/// A key in the customer's list. Times are in UTC.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
pub struct ApiKeySnapshot {
    /// The key's id.
    pub id: KeyId,
    /// The key's name. Several keys may have the same name.
    pub name: String,
    /// The first characters of the secret, which help people to recognise the key.
    pub key_prefix: String,
    /// The stored status.
    pub status: KeyStatus,
    /// When the key was created.
    #[diesel(deserialize_as = Time)]
    pub created_at: DateTime<Utc>,
    /// When the key was last used; `None` is never.
    #[diesel(deserialize_as = MaybeTime)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// When the key expires; `None` is never. The status may still be `active` after this time.
    #[diesel(deserialize_as = MaybeTime)]
    pub expires_at: Option<DateTime<Utc>>,
    /// The number of recorded uses of the key.
    pub total_requests: i64,
    /// Always `false`, because the facade hides synthetic keys.
    pub is_synthetic: bool,
}

/// A key with the details that the customer sees. Times are in UTC.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
pub struct ApiKeyDetailSnapshot {
    /// The key's id.
    pub id: KeyId,
    /// The key's name. Several keys may have the same name.
    pub name: String,
    /// The first characters of the secret, which help people to recognise the key.
    pub key_prefix: String,
    /// The stored status.
    pub status: KeyStatus,
    /// When the key was created.
    #[diesel(deserialize_as = Time)]
    pub created_at: DateTime<Utc>,
    /// When the key was last used; `None` is never.
    #[diesel(deserialize_as = MaybeTime)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// When the key expires; `None` is never. The status may still be `active` after this time.
    #[diesel(deserialize_as = MaybeTime)]
    pub expires_at: Option<DateTime<Utc>>,
    /// The number of recorded uses of the key.
    pub total_requests: i64,
    /// What the key may do. This is the stored text, which is not parsed and may not be JSON.
    pub permissions_json: Option<String>,
    /// Which workers the key may run. This is the stored text, which is not parsed and may not be JSON.
    pub allowed_workers_json: Option<String>,
    /// The most requests per minute; `None` is no limit.
    pub rate_limit_rpm: Option<i32>,
    /// The most runs at the same time; `None` is no limit.
    pub max_concurrent_runs: Option<i32>,
    /// When the key was revoked; `None` if it was not.
    #[diesel(deserialize_as = MaybeTime)]
    pub revoked_at: Option<DateTime<Utc>>,
    /// Why the key was revoked, if a reason was stored.
    pub revoked_reason: Option<String>,
}

/// Reads a tenant's keys as the customer sees them: without synthetic keys.
///
/// Like [`KeysDriver`](crate::KeysDriver), it borrows a connection and makes no decisions. Each method sends one
/// statement that is limited to one tenant, and locks nothing. A synthetic key (a key that a test scenario made) is in
/// no page and no count, and fetching it returns `None`.
///
/// # Errors
///
/// The errors of [`KeysDriver`](crate::KeysDriver#errors).
///
/// ```
/// use api_keys_driver::{ApiKeysFacadeDriver, KeyStatus, Page, Result, TenantId};
/// use diesel::PgConnection;
///
/// /// The number of active keys, and the names of the newest three.
/// fn active_keys(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<(i64, Vec<String>)> {
///     let mut api_keys = ApiKeysFacadeDriver::new(conn);
///     let count = api_keys.count_api_keys(tenant_id, Some(&KeyStatus::Active))?;
///     let page = Page { limit: 3, offset: 0 };
///     let newest = api_keys.fetch_api_keys(tenant_id, Some(&KeyStatus::Active), page)?;
///     Ok((count, newest.into_iter().map(|key| key.name).collect()))
/// }
/// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
/// # let mut conn = database.connect().unwrap();
/// # assert_eq!(active_keys(&mut conn, &TenantId::from("nobody")).unwrap(), (0, vec![]));
/// ```
pub struct ApiKeysFacadeDriver<'c> {
    conn: &'c mut PgConnection,
}

/// Shows no field, because Diesel's connection does not implement `Debug`.
impl fmt::Debug for ApiKeysFacadeDriver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeysFacadeDriver").finish_non_exhaustive()
    }
}

impl From<&ApiKeySnapshot> for KeyCursor {
    fn from(key: &ApiKeySnapshot) -> Self {
        Self::after(key.created_at, &key.id)
    }
}

impl<'c> ApiKeysFacadeDriver<'c> {
    /// Borrows a connection.
    pub fn new(conn: &'c mut PgConnection) -> Self {
        Self { conn }
    }

    /// Fetches a page of the tenant's keys, newest first: `created_at DESC, id DESC`.
    ///
    /// With a status, the page holds only the keys whose stored status is equal to it.
    pub fn fetch_api_keys(
        &mut self,
        tenant_id: &TenantId,
        status: Option<&KeyStatus>,
        page: Page,
    ) -> Result<Vec<ApiKeySnapshot>> {
        Listing::shown(tenant_id, status).page(page).load(self.conn, identity)
    }

    /// Fetches the keys after a cursor, or from the start, in the order of [`fetch_api_keys`](Self::fetch_api_keys).
    ///
    /// As with [`KeysDriver::fetch_keys_after`](crate::KeysDriver::fetch_keys_after), a cursor costs the same at any
    /// depth, and a loop over the pages sees each key that is not inserted or deleted meanwhile exactly once.
    pub fn fetch_api_keys_after(
        &mut self,
        tenant_id: &TenantId,
        status: Option<&KeyStatus>,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<ApiKeySnapshot>> {
        Listing::shown(tenant_id, status).after(cursor, limit).load(self.conn, identity)
    }

    /// Counts the keys that [`fetch_api_keys`](Self::fetch_api_keys) lists for the same status.
    pub fn count_api_keys(&mut self, tenant_id: &TenantId, status: Option<&KeyStatus>) -> Result<i64> {
        Listing::shown(tenant_id, status).count(self.conn)
    }

    /// Counts the same keys as [`count_api_keys`](Self::count_api_keys) and stops at `bound`, so the answer is at most
    /// `bound`.
    pub fn count_api_keys_up_to(
        &mut self,
        tenant_id: &TenantId,
        status: Option<&KeyStatus>,
        bound: u32,
    ) -> Result<i64> {
        Listing::shown(tenant_id, status).count_up_to(bound, self.conn)
    }

    /// Fetches one key. Returns `None` if the tenant has no such key, or if the key is synthetic.
    pub fn fetch_api_key_by_id(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<ApiKeyDetailSnapshot>> {
        ApiKeyDetailSnapshot::query()
            .filter(shown(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .read_optional(self.conn)
    }
}
