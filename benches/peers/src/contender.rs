//! What every contender can do.

use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, TenantId, UsageBucket};
use chrono::{DateTime, Utc};

use crate::answer::Answer;

pub trait Contender {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Answer<Option<KeySnapshot>>;
    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Answer<Vec<KeySnapshot>>;
    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Answer<Vec<(KeySnapshot, KeyUsageSnapshot)>>;
    fn count(&mut self, tenant_id: &TenantId) -> Answer<i64>;
    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> Answer<i64>;
    fn usage(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        since: DateTime<Utc>,
    ) -> Answer<KeyUsageSnapshot>;
    /// By the hour, from the first boundary to the last: the full hours between which the hours lie.
    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        hours: &[DateTime<Utc>],
    ) -> Answer<Vec<UsageBucket>>;
    /// Begins, locks, freezes and commits.
    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Answer<KeySnapshot>;
}
