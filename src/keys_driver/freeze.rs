//! Freezing and unfreezing a key, and reading who froze it. Revoking is in `revocation.rs`.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;

use super::{KeySnapshot, KeysDriver, LockedKey};
use crate::require;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::{MaybeTime, Time};
use crate::{KeyId, Result, TenantId};

/// A freeze with its time, its author and its reason, for
/// [`update_key_frozen_by`](KeysDriver::update_key_frozen_by).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freeze<'a> {
    /// When the key is frozen, in UTC.
    pub at: DateTime<Utc>,
    /// Who freezes the key, at most 100 characters.
    pub by: &'a str,
    /// Why the key is frozen. The text may have any length.
    pub reason: Option<&'a str>,
}

/// The stored time, author and reason of a freeze. Each one may be missing.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
pub struct KeyFreezeSnapshot {
    /// When the key was frozen, in UTC.
    #[diesel(deserialize_as = MaybeTime)]
    pub frozen_at: Option<DateTime<Utc>>,
    /// Who froze the key.
    pub frozen_by: Option<String>,
    /// Why the key was frozen.
    pub freeze_reason: Option<String>,
}

impl<'c> KeysDriver<'c> {
    /// Fetches who froze a key, when and why. Returns `None` if the key is not frozen, or if the tenant has no such
    /// key. Nothing is locked.
    pub fn fetch_key_freeze(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<KeyFreezeSnapshot>> {
        // `is_frozen` is a column and not a filter. With the filter, the planner expects so few frozen keys that it
        // would read all keys of the tenant.
        let freeze = api_keys::table
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .select((api_keys::is_frozen, KeyFreezeSnapshot::as_select()))
            .read_optional::<(bool, KeyFreezeSnapshot)>(self.conn)?;
        Ok(freeze.and_then(|(is_frozen, freeze)| is_frozen.then_some(freeze)))
    }

    /// Freezes a key, and returns the changed key.
    ///
    /// It sets `is_frozen = true` and `frozen_at`, in UTC, and clears the author and the reason of an earlier
    /// freeze. A key that is already frozen gets the new `frozen_at`. The status does not change. The row stays
    /// locked until the transaction ends.
    ///
    /// # Errors
    ///
    /// - [`Error::LockedElsewhere`](crate::Error::LockedElsewhere) before anything is sent, if another connection
    ///   locked the key.
    /// - [`Error::NotInTransaction`](crate::Error::NotInTransaction) before anything is sent, if the transaction that
    ///   locked the key has ended.
    /// - [`Error::LockLost`](crate::Error::LockLost) if this transaction deleted the row, or if the lock was lost and
    ///   another transaction changed the row.
    pub fn update_key_frozen(&mut self, key: LockedKey<'c>, frozen_at: DateTime<Utc>) -> Result<KeySnapshot> {
        self.update_key_freeze(key, Some(frozen_at), None, None)
    }

    /// Freezes a key as [`update_key_frozen`](Self::update_key_frozen) does, and stores who froze it and why.
    ///
    /// # Errors
    ///
    /// The errors of [`update_key_frozen`](Self::update_key_frozen). Also, before anything is sent:
    /// [`Error::TooLong`](crate::Error::TooLong) if `by` has more than 100 characters, and
    /// [`Error::NulByte`](crate::Error::NulByte).
    pub fn update_key_frozen_by(&mut self, key: LockedKey<'c>, freeze: &Freeze<'_>) -> Result<KeySnapshot> {
        require::fits("frozen_by", 100, freeze.by)?;
        require::is_text_if_any("freeze_reason", freeze.reason)?;
        self.update_key_freeze(key, Some(freeze.at), Some(freeze.by), freeze.reason)
    }

    /// Unfreezes a key, and returns the changed key.
    ///
    /// It sets `is_frozen = false` and clears the time, the author and the reason of the freeze. The status does not
    /// change: a revoked key stays revoked. The row stays locked until the transaction ends.
    ///
    /// # Errors
    ///
    /// The errors of [`update_key_frozen`](Self::update_key_frozen).
    pub fn update_key_unfrozen(&mut self, key: LockedKey<'c>) -> Result<KeySnapshot> {
        self.update_key_freeze(key, None, None, None)
    }

    fn update_key_freeze(
        &mut self,
        key: LockedKey<'c>,
        at: Option<DateTime<Utc>>,
        by: Option<&str>,
        reason: Option<&str>,
    ) -> Result<KeySnapshot> {
        struct UpdateKeyFreeze;

        let changes = (
            api_keys::is_frozen.eq(at.is_some()),
            api_keys::frozen_at.eq(at.map(Time::from)),
            api_keys::frozen_by.eq(by),
            api_keys::freeze_reason.eq(reason),
        );
        self.update_locked::<UpdateKeyFreeze, _>(key, changes)
    }
}
