//! Setting when a key expires, and listing the keys that expire next. The statement of the list is in
//! `active_by_time.rs`.

use chrono::{DateTime, Utc};
use diesel::prelude::*;

use super::active_by_time::SelectActiveByTime;
use super::{KeySnapshot, KeysDriver, LockedKey};
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{ExpiryCursor, Result, TenantId};

impl<'c> KeysDriver<'c> {
    /// Sets when a key expires, in UTC, and returns the changed key. `None` means that it never expires.
    ///
    /// The status does not change, even if the time is in the past. The row stays locked until the transaction
    /// ends. [`insert_key_successor`](Self::insert_key_successor) shows a rotation in which the old key keeps
    /// working for some time.
    ///
    /// # Errors
    ///
    /// The errors of [`update_key_frozen`](Self::update_key_frozen).
    pub fn update_key_expires_at(
        &mut self,
        key: LockedKey<'c>,
        expires_at: Option<DateTime<Utc>>,
    ) -> Result<KeySnapshot> {
        struct UpdateKeyExpiresAt;

        let expires_at = expires_at.map(Time::from);
        self.update_locked::<UpdateKeyExpiresAt, _>(key, api_keys::expires_at.eq(expires_at))
    }

    /// Fetches the tenant's `active` keys that expire before a time, after a cursor or from the start.
    ///
    /// The key that expires first comes first; keys that expire at the same time are in the order of their ids.
    /// Keys that have already expired and are still `active` are in the list. So are frozen and synthetic keys.
    /// Keys that never expire are not. Nothing is locked.
    ///
    /// A key leaves the list when it is revoked or its expiry moves beyond `before`. The other keys keep their
    /// positions, so a loop over the pages can change the keys as it goes and sees every other key exactly once:
    ///
    /// ```
    /// use api_keys_driver::{ExpiryCursor, KeysDriver, Result, TenantId};
    /// use chrono::{DateTime, Utc};
    /// use diesel::{Connection, PgConnection};
    ///
    /// /// Revokes the keys that have expired.
    /// fn revoke_expired(conn: &mut PgConnection, tenant_id: &TenantId, now: DateTime<Utc>) -> Result<()> {
    ///     let mut cursor: Option<ExpiryCursor> = None;
    ///     loop {
    ///         let page = KeysDriver::new(conn).fetch_keys_expiring(tenant_id, now, cursor.as_ref(), 100)?;
    ///         let Some(last) = page.last() else { return Ok(()) };
    ///         cursor = Some(last.into());
    ///         for key in page {
    ///             conn.transaction(|conn| {
    ///                 let mut keys = KeysDriver::new(conn);
    ///                 match keys.fetch_key_for_update(tenant_id, &key.id)? {
    ///                     Some(key) if key.expires_at.is_some_and(|at| at < now) => {
    ///                         keys.update_key_revoked(key, now, Some("expired")).map(drop)
    ///                     }
    ///                     _ => Ok(()), // deleted or prolonged since the page was read
    ///                 }
    ///             })?;
    ///         }
    ///     }
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let now = "2026-01-01T00:00:00Z".parse().unwrap();
    /// # revoke_expired(&mut database.connect().unwrap(), &"nobody".into(), now).unwrap();
    /// ```
    pub fn fetch_keys_expiring(
        &mut self,
        tenant_id: &TenantId,
        before: DateTime<Utc>,
        cursor: Option<&ExpiryCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        let after = cursor.map(|cursor| (cursor.expires_at.into(), &cursor.id));
        let expires_at = r#""api_keys"."expires_at""#;
        SelectActiveByTime::new(expires_at, tenant_id, before.into(), after, limit).read_all(self.conn)
    }
}
