//! The operations of every contender.

use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, KeyUse, TenantId, UsageBucket};
use chrono::{DateTime, Utc};

use crate::answer::Answer;

/// The keys whose prefix begins with a text.
pub struct Prefix {
    pub tenant_id: TenantId,
    /// What the prefix begins with.
    pub text: &'static str,
    /// The first text after all texts that begin with it.
    pub end: &'static str,
}

pub trait Contender {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Answer<Option<KeySnapshot>>;
    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Answer<Vec<KeySnapshot>>;
    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Answer<Vec<(KeySnapshot, KeyUsageSnapshot)>>;
    fn by_prefix(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>>;
    /// The same among all tenants.
    fn by_prefix_of_any_tenant(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>>;
    fn count(&mut self, tenant_id: &TenantId) -> Answer<i64>;
    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> Answer<i64>;
    fn usage(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        since: DateTime<Utc>,
    ) -> Answer<KeyUsageSnapshot>;
    /// By the hour, from the first boundary to the last. The boundaries are full hours.
    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        hours: &[DateTime<Utc>],
    ) -> Answer<Vec<UsageBucket>>;
    /// Begins, locks, freezes and commits.
    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Answer<KeySnapshot>;
    /// Begins, locks, sets the name and the limit of requests a minute, and commits.
    fn update(&mut self, tenant_id: &TenantId, key_id: &KeyId, name: &str, rpm: i32) -> Answer<KeySnapshot>;
    /// Records uses of keys of one tenant, and answers with the number of keys.
    fn record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64>;
    /// Records the uses of keys that are not locked, and answers with the number of the others.
    fn try_record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64>;
}
