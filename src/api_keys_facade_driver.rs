use std::convert::identity;

use chrono::{DateTime, Utc};
use diesel::dsl::not;
use diesel::pg::Pg;
use diesel::prelude::*;

use crate::listing::{self, Count, CountUpTo};
use crate::schema::api_keys;
use crate::{KeyCursor, KeyId, Page, Result, TenantId};

/// The tenant's keys that customers see: the partial indexes are told by these very words.
#[diesel::dsl::auto_type]
#[expect(
    clippy::elidable_lifetime_names,
    reason = "the macro names the return type, and asks for the lifetime"
)]
fn shown<'a>(tenant_id: &'a TenantId) -> _ {
    api_keys::tenant_id.eq(tenant_id).and(not(api_keys::is_synthetic))
}

/// A key in the customer's list.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
pub struct ApiKeySnapshot {
    /// The key's own id.
    pub id: KeyId,
    /// What people call the key.
    pub name: String,
    /// The first characters of the secret, by which people tell keys apart.
    pub key_prefix: String,
    /// The status as stored: `active`, `revoked` or `expired`.
    pub status: String,
    /// When the key was created.
    pub created_at: DateTime<Utc>,
    /// When the key was last used, if it ever was.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When the key expires, if it ever does.
    pub expires_at: Option<DateTime<Utc>>,
    /// How often the key was used, as the service counted it.
    pub total_requests: i64,
    /// Always `false`: the facade shows no other key.
    pub is_synthetic: bool,
}

/// A key on the customer's page of that key.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
pub struct ApiKeyDetailSnapshot {
    /// The key's own id.
    pub id: KeyId,
    /// What people call the key.
    pub name: String,
    /// The first characters of the secret, by which people tell keys apart.
    pub key_prefix: String,
    /// The status as stored: `active`, `revoked` or `expired`.
    pub status: String,
    /// When the key was created.
    pub created_at: DateTime<Utc>,
    /// When the key was last used, if it ever was.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When the key expires, if it ever does.
    pub expires_at: Option<DateTime<Utc>>,
    /// How often the key was used, as the service counted it.
    pub total_requests: i64,
    /// What the key may do, the stored text as it is: not parsed, and not always JSON.
    pub permissions_json: Option<String>,
    /// Which workers the key may run, the stored text as it is.
    pub allowed_workers_json: Option<String>,
    /// The most requests a minute, if limited.
    pub rate_limit_rpm: Option<i32>,
    /// The most runs at a time, if limited.
    pub max_concurrent_runs: Option<i32>,
    /// When the key was revoked, if it was.
    pub revoked_at: Option<DateTime<Utc>>,
    /// Why the key was revoked, if somebody said.
    pub revoked_reason: Option<String>,
}

/// The customer's view of a tenant's keys: read-only, and without synthetic keys.
///
/// Like [`KeysDriver`](crate::KeysDriver) it borrows a connection, decides nothing, and sends one
/// statement a method, confined to the tenant. A key made by a test scenario is not there: it is in
/// no page and no count, and fetching it is `None`.
///
/// # Errors
///
/// As for [`KeysDriver`](crate::KeysDriver#errors).
///
/// ```
/// use api_keys_driver::{ApiKeysFacadeDriver, Page, Result, TenantId};
/// use diesel::PgConnection;
///
/// /// "12 active keys", and the newest of them.
/// fn active_keys(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<(i64, Vec<String>)> {
///     let mut api_keys = ApiKeysFacadeDriver::new(conn);
///     let count = api_keys.count_api_keys(tenant_id, Some("active"))?;
///     let newest = api_keys.fetch_api_keys(tenant_id, Some("active"), Page { limit: 3, offset: 0 })?;
///     Ok((count, newest.into_iter().map(|key| key.name).collect()))
/// }
/// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
/// # let mut conn = database.connect().unwrap();
/// # assert_eq!(active_keys(&mut conn, &TenantId::from("nobody")).unwrap(), (0, vec![]));
/// ```
pub struct ApiKeysFacadeDriver<'c> {
    conn: &'c mut PgConnection,
}

impl<'c> ApiKeysFacadeDriver<'c> {
    /// Borrows a connection.
    pub fn new(conn: &'c mut PgConnection) -> Self {
        Self { conn }
    }

    /// Fetches a page of the tenant's keys, newest first: `created_at DESC, id DESC`.
    ///
    /// A status selects the keys whose status is exactly that, as stored: `active`, `revoked` or
    /// `expired`. One that no key has selects none.
    pub fn fetch_api_keys(
        &mut self,
        tenant_id: &TenantId,
        status: Option<&str>,
        page: Page,
    ) -> Result<Vec<ApiKeySnapshot>> {
        match status {
            None => listing::fetch_page(self.conn, shown(tenant_id), page, identity),
            Some(status) => listing::fetch_page(
                self.conn,
                shown(tenant_id).and(api_keys::status.eq(status)),
                page,
                identity,
            ),
        }
    }

    /// Fetches the keys behind a cursor, or the newest, in the order of [`fetch_api_keys`](Self::fetch_api_keys).
    ///
    /// As with [`KeysDriver::fetch_keys_after`](crate::KeysDriver::fetch_keys_after), a cursor costs the
    /// same at any depth, and a walk meets each key that stands throughout exactly once.
    pub fn fetch_api_keys_after(
        &mut self,
        tenant_id: &TenantId,
        status: Option<&str>,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<ApiKeySnapshot>> {
        match status {
            None => listing::fetch_after(self.conn, shown(tenant_id), cursor, limit, identity),
            Some(status) => {
                let scope = shown(tenant_id).and(api_keys::status.eq(status));
                listing::fetch_after(self.conn, scope, cursor, limit, identity)
            }
        }
    }

    /// Counts the keys that [`fetch_api_keys`](Self::fetch_api_keys) pages through with the same status.
    pub fn count_api_keys(&mut self, tenant_id: &TenantId, status: Option<&str>) -> Result<i64> {
        let count = match status {
            None => Count(shown(tenant_id)).get_result(self.conn),
            Some(status) => Count(shown(tenant_id).and(api_keys::status.eq(status))).get_result(self.conn),
        }?;
        Ok(count)
    }

    /// Counts the same keys as [`count_api_keys`](Self::count_api_keys), but no further than a bound:
    /// the answer is never above it.
    pub fn count_api_keys_up_to(
        &mut self,
        tenant_id: &TenantId,
        status: Option<&str>,
        bound: u32,
    ) -> Result<i64> {
        let count = match status {
            None => CountUpTo::new(shown(tenant_id), bound).get_result(self.conn),
            Some(status) => {
                let scope = shown(tenant_id).and(api_keys::status.eq(status));
                CountUpTo::new(scope, bound).get_result(self.conn)
            }
        }?;
        Ok(count)
    }

    /// Fetches one key; `None` for a missing key, another tenant's, and a synthetic one.
    pub fn fetch_api_key_by_id(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<ApiKeyDetailSnapshot>> {
        let key = ApiKeyDetailSnapshot::query()
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(not(api_keys::is_synthetic))
            .filter(api_keys::id.eq(key_id))
            .get_result(self.conn)
            .optional()?;
        Ok(key)
    }
}
