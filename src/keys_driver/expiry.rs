//! When keys expire: setting it, and finding the keys that expire next.

use chrono::{DateTime, Utc};
use diesel::prelude::*;

use super::{KeySnapshot, KeysDriver, LockedKey};
use crate::schema::api_keys;
use crate::time::Time;
use crate::{KeyStatus, Page, Result, TenantId};

impl<'c> KeysDriver<'c> {
    /// Sets or clears when a key expires. Its status stays, also when that moment is past.
    ///
    /// Returns the key as it is after the change.
    ///
    /// A rotation with grace locks the old key, inserts the new one, and lets the old one expire, in one
    /// transaction: either both happen, or neither. The lock comes first, so that of two rotations of a
    /// key the second sees the expiry that the first one set, and can leave it at that.
    ///
    /// ```
    /// # use api_keys_driver::{Error, KeyHash, KeyId, KeySnapshot, KeyStatus, KeysDriver, NewKey, Result, TenantId};
    /// # use chrono::{DateTime, TimeDelta, Utc};
    /// # use diesel::{Connection, PgConnection};
    /// /// The new key, or nothing where there is no active key to rotate.
    /// fn rotate(
    ///     conn: &mut PgConnection,
    ///     tenant_id: &TenantId,
    ///     old: &KeyId,
    ///     new: &NewKey,
    ///     grace_ends_at: DateTime<Utc>,
    /// ) -> Result<Option<KeySnapshot>> {
    ///     conn.transaction(|conn| {
    ///         let mut keys = KeysDriver::new(conn);
    ///         let Some(old) = keys.fetch_key_for_update(tenant_id, old)? else { return Ok(None) };
    ///         let expires_sooner = old.expires_at.is_some_and(|at| at <= grace_ends_at);
    ///         if old.status != KeyStatus::Active || old.is_frozen || expires_sooner {
    ///             return Ok(None); // the engine's rules; the driver has none
    ///         }
    ///         let new = keys.insert_key(new)?;
    ///         keys.update_key_expires_at(old, Some(grace_ends_at))?;
    ///         Ok(Some(new))
    ///     })
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # let tenant_id = TenantId::from("tenant");
    /// # let now: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
    /// # let key = |id: &str| NewKey::new(tenant_id.clone(), id.into(), "Production", "sk-live", KeyHash::from(id), now);
    /// # KeysDriver::new(&mut conn).insert_key(&key("old")).unwrap();
    /// # let grace_ends_at = now + TimeDelta::days(1);
    /// # let new = rotate(&mut conn, &tenant_id, &"old".into(), &key("new"), grace_ends_at).unwrap();
    /// # assert_eq!(new.unwrap().id, "new".into());
    /// # let old = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant_id, &"old".into()).unwrap().unwrap();
    /// # assert_eq!(old.expires_at, Some(grace_ends_at));
    /// # let again = rotate(&mut conn, &tenant_id, &"old".into(), &key("third"), grace_ends_at).unwrap();
    /// # assert_eq!(again, None);
    /// ```
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
        let keys = KeySnapshot::query()
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::status.eq(KeyStatus::Active.as_str()))
            .filter(api_keys::expires_at.lt(Time::from(before)))
            .order((api_keys::expires_at, api_keys::id))
            .limit(page.limit.into())
            .offset(page.offset.into())
            .load(self.conn)?;
        Ok(keys)
    }
}
