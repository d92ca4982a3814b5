//! Keys that were not used for long.

use chrono::{DateTime, Utc};

use super::worked_off::WorkedOff;
use super::{KeySnapshot, KeysDriver};
use crate::send::RunStatement;
use crate::{Result, TenantId, UnusedCursor};

impl KeysDriver<'_> {
    /// Fetches the tenant's `active` keys that were not used since a moment, longest unused first, then by id, behind a
    /// cursor or from the start.
    ///
    /// A key that was used at the moment itself is not there. A key that was never used counts from its creation.
    /// Frozen and synthetic keys are there too. The list is meant to be worked off: a key that is used or revoked
    /// meanwhile leaves it and moves no other, so that a walk meets each key once that stays in it.
    ///
    /// Each page reads all active keys of the tenant, a fifth of a microsecond each when they are in memory, whatever its size: an index that knew
    /// better would have to be rewritten by every use. So ask for some thousands at a time.
    pub fn fetch_keys_unused(
        &mut self,
        tenant_id: &TenantId,
        since: DateTime<Utc>,
        cursor: Option<&UnusedCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        let used_at = r#"coalesce("api_keys"."last_used_at", "api_keys"."created_at")"#;
        let place = cursor.map(|cursor| (cursor.used_at.into(), &cursor.id));
        WorkedOff::new(used_at, tenant_id, since.into(), place, limit).read_all(self.conn)
    }
}
