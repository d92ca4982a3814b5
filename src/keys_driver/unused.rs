//! Keys that were not used for long.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Timestamptz};

use super::{KeySnapshot, KeysDriver};
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{KeyStatus, Page, Result, TenantId};

#[diesel::declare_sql_function]
extern "SQL" {
    fn coalesce(first: Nullable<Timestamptz>, second: Timestamptz) -> Timestamptz;
}

impl KeysDriver<'_> {
    /// Fetches a page of the tenant's `active` keys that were not used since a moment, that moment
    /// included, longest unused first, then by id.
    ///
    /// A key that was never used counts from its creation. Frozen and synthetic keys are there too.
    ///
    /// Each call reads all active keys of the tenant, some microseconds each: an index that knew better
    /// would have to be rewritten by every use.
    pub fn fetch_keys_unused(
        &mut self,
        tenant_id: &TenantId,
        since: DateTime<Utc>,
        page: Page,
    ) -> Result<Vec<KeySnapshot>> {
        let used_at = || coalesce(api_keys::last_used_at, api_keys::created_at);
        KeySnapshot::query()
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::status.eq(KeyStatus::Active.as_str()))
            .filter(used_at().lt(Time::from(since)))
            .order((used_at(), api_keys::id))
            .limit(page.limit.into())
            .offset(page.offset.into())
            .read_all(self.conn)
    }
}
