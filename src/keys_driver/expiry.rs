//! When keys expire: setting it, and finding the keys that expire next.

use chrono::{DateTime, Utc};
use diesel::prelude::*;

use super::{KeySnapshot, KeysDriver, LockedKey};
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{KeyStatus, Page, Result, TenantId};

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

    /// Fetches a page of the tenant's `active` keys that expire before a moment, soonest first:
    /// `expires_at, id`.
    ///
    /// Those that have expired already and are still `active` come first. Frozen and synthetic keys
    /// are there too; a key that never expires is not.
    pub fn fetch_keys_expiring(
        &mut self,
        tenant_id: &TenantId,
        before: DateTime<Utc>,
        page: Page,
    ) -> Result<Vec<KeySnapshot>> {
        KeySnapshot::query()
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::status.eq(KeyStatus::Active.as_str()))
            .filter(api_keys::expires_at.lt(Time::from(before)))
            .order((api_keys::expires_at, api_keys::id))
            .limit(page.limit.into())
            .offset(page.offset.into())
            .read_all(self.conn)
    }
}
