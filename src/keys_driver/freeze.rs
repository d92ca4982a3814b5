//! Freezing and unfreezing a key, and who froze it.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;

use super::{KeySnapshot, KeysDriver, LockedKey};
use crate::require;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::{MaybeTime, Time};
use crate::{KeyId, Result, TenantId};

/// Who freezes a key, when and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freeze<'a> {
    /// When the key is frozen.
    pub at: DateTime<Utc>,
    /// Who freezes it: at most 100 characters.
    pub by: &'a str,
    /// Why, if there is more to say.
    pub reason: Option<&'a str>,
}

/// Who froze a key, when and why, as far as it was said.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
pub struct KeyFreezeSnapshot {
    /// When the key was frozen.
    #[diesel(deserialize_as = MaybeTime)]
    pub frozen_at: Option<DateTime<Utc>>,
    /// Who froze it.
    pub frozen_by: Option<String>,
    /// Why it was frozen.
    pub freeze_reason: Option<String>,
}

impl<'c> KeysDriver<'c> {
    /// Fetches who froze a key, when and why; `None` when it is not frozen, and for a missing key and
    /// another tenant's.
    pub fn fetch_key_freeze(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<KeyFreezeSnapshot>> {
        // Not a filter: the planner thinks frozen keys so rare that it would read all of the tenant's.
        let freeze = api_keys::table
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .select((api_keys::is_frozen, KeyFreezeSnapshot::as_select()))
            .read_optional::<(bool, KeyFreezeSnapshot)>(self.conn)?;
        Ok(freeze.and_then(|(is_frozen, freeze)| is_frozen.then_some(freeze)))
    }

    /// Freezes a key: `is_frozen = true`, `frozen_at` as given. Freezing a frozen key moves `frozen_at`.
    ///
    /// Nobody is named and no reason given: those of a former freeze are cleared. Returns the key as it
    /// is after the change.
    ///
    /// # Errors
    ///
    /// [`Error::LockedElsewhere`](crate::Error::LockedElsewhere) and [`Error::NotInTransaction`](crate::Error::NotInTransaction) before anything is sent, when the
    /// connection is not the one that locked the key, or its transaction was ended by hand.
    /// [`Error::LockLost`](crate::Error::LockLost) when the transaction itself removed the row since, or the lock was lost and
    /// another transaction changed the row.
    pub fn update_key_frozen(&mut self, key: LockedKey<'c>, frozen_at: DateTime<Utc>) -> Result<KeySnapshot> {
        self.update_key_freeze(key, Some(frozen_at), None, None)
    }

    /// Freezes a key as [`update_key_frozen`](Self::update_key_frozen) does, and says who did it and why.
    ///
    /// # Errors
    ///
    /// As for [`update_key_frozen`](Self::update_key_frozen), and before anything is sent
    /// [`Error::TooLong`](crate::Error::TooLong) when `by` has more than 100 characters, and [`Error::NulByte`](crate::Error::NulByte).
    pub fn update_key_frozen_by(&mut self, key: LockedKey<'c>, freeze: &Freeze<'_>) -> Result<KeySnapshot> {
        require::fits("frozen_by", 100, freeze.by)?;
        require::is_text_if_any("freeze_reason", freeze.reason)?;
        self.update_key_freeze(key, Some(freeze.at), Some(freeze.by), freeze.reason)
    }

    /// Unfreezes a key: `is_frozen = false`, and when, by whom and why are cleared. Its status stays:
    /// unfreezing revives no revoked key.
    ///
    /// Returns the key as it is after the change.
    ///
    /// # Errors
    ///
    /// As for [`update_key_frozen`](Self::update_key_frozen).
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
