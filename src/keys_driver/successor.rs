//! Inserting a key that replaces another, for a rotation. Setting when the old key expires is in `expiry.rs`.

use chrono::{DateTime, Utc};
use diesel::dsl::case_when;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text, Timestamptz};

use super::refusal::{Candidate, refusal};
use super::{KeyHash, KeySnapshot, KeysDriver, LockedKey};
use crate::change::Change;
use crate::prepared::Prepared;
use crate::require;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{KeyId, Result};

/// The values of a new key that replaces another. The new key copies all other values from the old one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySuccessor {
    /// The new key's id, at most 36 characters. It must be unique among the keys of all tenants.
    pub id: KeyId,
    /// The first characters of the new secret, at most 12.
    pub key_prefix: String,
    /// The hash of the new secret, at most 128 characters. It must be unique among the keys of all tenants.
    pub key_hash: KeyHash,
    /// When the new key was created, in UTC, by the engine's clock.
    pub created_at: DateTime<Utc>,
    /// When the new key expires, in UTC. `Keep` copies the expiry of the old key. `Set(None)` is never.
    pub expires_at: Change<Option<DateTime<Utc>>>,
}

impl KeySuccessor {
    /// Makes a successor that expires when the old key does.
    pub fn new(
        id: KeyId,
        key_prefix: impl Into<String>,
        key_hash: KeyHash,
        created_at: DateTime<Utc>,
    ) -> Self {
        Self { id, key_prefix: key_prefix.into(), key_hash, created_at, expires_at: Change::Keep }
    }
}

impl<'c> KeysDriver<'c> {
    /// Inserts a key with the same rights as a locked key, and returns the stored key.
    ///
    /// The server copies the old row, so that no restriction of the old key can be forgotten. It copies the tenant,
    /// user, name, permissions, allowed workers, both limits, the synthetic flag and the scenario. It also copies the
    /// expiry, unless `new` sets another. It copies the status and the freeze too: the successor of a revoked key is
    /// revoked, and the successor of a frozen key is frozen. The new key has no uses. A column that another program
    /// added to the table gets its default.
    ///
    /// A rotation with a grace period locks the old key, inserts the successor, and sets the expiry of the old key,
    /// all in one transaction:
    ///
    /// ```
    /// # use api_keys_driver::{Change, KeyHash, KeySnapshot, KeyStatus, KeySuccessor, KeysDriver, NewKey, Result, TenantId};
    /// # use chrono::{DateTime, TimeDelta, Utc};
    /// # use diesel::{Connection, PgConnection};
    /// /// Replaces a key, which keeps working until the grace period ends. Returns `None` if the key must not be
    /// /// rotated, or if it has changed since `seen` was read.
    /// fn rotate(
    ///     conn: &mut PgConnection,
    ///     seen: &KeySnapshot,
    ///     new: &KeySuccessor,
    ///     grace_ends_at: DateTime<Utc>,
    /// ) -> Result<Option<KeySnapshot>> {
    ///     conn.transaction(|conn| {
    ///         let mut keys = KeysDriver::new(conn);
    ///         let Some(old) = keys.fetch_key_for_update(&seen.tenant_id, &seen.id)? else { return Ok(None) };
    ///         let expires_first = old.expires_at.is_some_and(|at| at <= grace_ends_at.max(new.created_at));
    ///         if old.revision != seen.revision // it was changed after `seen` was read
    ///             || old.status != KeyStatus::Active
    ///             || old.is_frozen
    ///             || expires_first
    ///         {
    ///             return Ok(None); // these are the engine's rules; the driver has none
    ///         }
    ///         let new = keys.insert_key_successor(&old, new)?;
    ///         keys.update_key_expires_at(old, Some(grace_ends_at))?;
    ///         Ok(Some(new))
    ///     })
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # let tenant_id = TenantId::from("tenant");
    /// # let now: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
    /// # let old = NewKey {
    /// #     permissions_json: Some(r#"["read"]"#.into()),
    /// #     ..NewKey::new(tenant_id.clone(), "old".into(), "Production", "sk-live", KeyHash::from("old"), now)
    /// # };
    /// # let seen = KeysDriver::new(&mut conn).insert_key(&old).unwrap();
    /// # let grace_ends_at = now + TimeDelta::days(1);
    /// # let successor = |id: &str| KeySuccessor {
    /// #     expires_at: Change::Set(Some(now + TimeDelta::days(90))),
    /// #     ..KeySuccessor::new(id.into(), "sk-live", KeyHash::from(id), now)
    /// # };
    /// # let new = rotate(&mut conn, &seen, &successor("new"), grace_ends_at).unwrap();
    /// # assert_eq!(new.unwrap().expires_at, Some(now + TimeDelta::days(90)));
    /// # let mut keys = KeysDriver::new(&mut conn);
    /// # let auth = keys.fetch_key_auth_by_id(&tenant_id, &"new".into()).unwrap().unwrap();
    /// # assert_eq!(auth.permissions_json, old.permissions_json);
    /// # let old = keys.fetch_key_by_id(&tenant_id, &seen.id).unwrap().unwrap();
    /// # assert_eq!(old.expires_at, Some(grace_ends_at));
    /// # let sooner = now + TimeDelta::hours(1);
    /// # assert_eq!(rotate(&mut conn, &seen, &successor("third"), sooner).unwrap(), None);
    /// # assert_eq!(rotate(&mut conn, &old, &successor("third"), grace_ends_at).unwrap(), None);
    /// ```
    ///
    /// Two rotations may start from the same snapshot. The first moves the expiry, which raises the revision. The
    /// second waits for the lock, finds the higher revision, and does nothing. This works only if the first always
    /// moves the expiry, so the function skips a key that expires before the grace period ends. To rotate such a key,
    /// pass a shorter grace period.
    ///
    /// # Errors
    ///
    /// [`Error::KeyExists`](crate::Error::KeyExists), [`Error::KeyHashExists`](crate::Error::KeyHashExists),
    /// [`Error::TooLong`](crate::Error::TooLong) and [`Error::NulByte`](crate::Error::NulByte) as for
    /// [`insert_key`](Self::insert_key). Also the errors of [`update_key_frozen`](Self::update_key_frozen).
    pub fn insert_key_successor(&mut self, old: &LockedKey<'c>, new: &KeySuccessor) -> Result<KeySnapshot> {
        struct InsertKeySuccessor;

        require::fits("id", 36, new.id.as_str())?;
        require::fits("key_prefix", 12, &new.key_prefix)?;
        require::fits("key_hash", 128, new.key_hash.as_str())?;
        let expires_at = new.expires_at.value().flatten().map(Time::from);
        let (tenant_id, id, key_hash) = (&old.tenant_id, &new.id, &new.key_hash);
        let candidate = Candidate { tenant_id, id, user_id: None, key_hash };
        self.run_locked(old, |conn, revision| {
            let insert = api_keys::table
                .filter(api_keys::tenant_id.eq(&old.tenant_id))
                .filter(api_keys::id.eq(&old.id))
                .filter(api_keys::revision.eq(revision))
                .select((
                    api_keys::tenant_id,
                    new.id.as_str().into_sql::<Text>(),
                    new.key_prefix.as_str().into_sql::<Text>(),
                    (&new.key_hash).into_sql::<Text>(),
                    Time::from(new.created_at).into_sql::<Timestamptz>(),
                    case_when(new.expires_at.is_set().into_sql::<Bool>(), expires_at)
                        .otherwise(api_keys::expires_at),
                    copied(),
                ))
                .insert_into(api_keys::table)
                .into_columns((
                    api_keys::tenant_id,
                    api_keys::id,
                    api_keys::key_prefix,
                    api_keys::key_hash,
                    api_keys::created_at,
                    api_keys::expires_at,
                    copied(),
                ))
                .returning(KeySnapshot::as_returning());
            let inserted = Prepared::<InsertKeySuccessor, _>::new(insert)
                .insert(conn, |error| refusal(error, std::slice::from_ref(&candidate)))?;
            Ok(inserted.into_iter().next())
        })
    }
}

/// The columns that a successor copies from the old key, apart from the tenant and the expiry.
#[diesel::dsl::auto_type]
fn copied() -> _ {
    (
        api_keys::user_id,
        api_keys::name,
        api_keys::permissions_json,
        api_keys::allowed_workers_json,
        api_keys::rate_limit_rpm,
        api_keys::max_concurrent_runs,
        api_keys::status,
        api_keys::revoked_at,
        api_keys::revoked_reason,
        api_keys::is_frozen,
        api_keys::frozen_at,
        api_keys::frozen_by,
        api_keys::freeze_reason,
        api_keys::is_synthetic,
        api_keys::synthetic_scenario_id,
    )
}
