//! When keys expire: setting it, and finding the keys that expire next.

use chrono::{DateTime, Utc};
use diesel::prelude::*;

use super::worked_off::WorkedOff;
use super::{KeySnapshot, KeysDriver, LockedKey};
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{ExpiryCursor, Result, TenantId};

impl<'c> KeysDriver<'c> {
    /// Sets or clears when a key expires. Its status stays, also when that moment is past.
    ///
    /// Returns the key as it is after the change.
    ///
    /// How a rotation lets the old key work on for a while is at
    /// [`insert_key_successor`](Self::insert_key_successor).
    ///
    /// # Errors
    ///
    /// As for [`update_key_frozen`](Self::update_key_frozen).
    pub fn update_key_expires_at(
        &mut self,
        key: LockedKey<'c>,
        expires_at: Option<DateTime<Utc>>,
    ) -> Result<KeySnapshot> {
        struct UpdateKeyExpiresAt;

        let expires_at = expires_at.map(Time::from);
        self.update_locked::<UpdateKeyExpiresAt, _>(key, api_keys::expires_at.eq(expires_at))
    }

    /// Fetches the tenant's `active` keys that expire before a moment, soonest first, then by id, behind a cursor or
    /// from the start.
    ///
    /// Those that have expired already and are still `active` come first. Frozen and synthetic keys are there
    /// too; a key that never expires is not. The list is meant to be worked off: a key that is revoked or
    /// prolonged meanwhile leaves it and moves no other, so that a walk meets each key once that stays in it.
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
    ///                     _ => Ok(()), // gone, or prolonged since
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
        let place = cursor.map(|cursor| (cursor.expires_at.into(), &cursor.id));
        let expires_at = r#""api_keys"."expires_at""#;
        WorkedOff::new(expires_at, tenant_id, before.into(), place, limit).read_all(self.conn)
    }
}
