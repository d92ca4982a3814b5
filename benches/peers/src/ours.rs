//! This crate, as an engine uses it.

use api_keys_driver::{
    Bucket, Change, Error, KeyChanges, KeyId, KeySnapshot, KeyUsageSnapshot, KeyUse, KeysDriver, Page,
    TenantId, UsageBucket,
};
use chrono::{DateTime, Utc};
use diesel::prelude::*;

use crate::answer::Answer;
use crate::contender::{Contender, Prefix};

pub struct Ours(pub PgConnection);

impl Ours {
    pub fn connect(url: &str) -> Self {
        Self(PgConnection::establish(url).unwrap())
    }
}

impl Contender for Ours {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Answer<Option<KeySnapshot>> {
        Answer::Ours(KeysDriver::new(&mut self.0).fetch_key_by_id(tenant_id, key_id).unwrap())
    }

    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Answer<Vec<KeySnapshot>> {
        Answer::Ours(KeysDriver::new(&mut self.0).fetch_keys(tenant_id, Page { limit, offset: 0 }).unwrap())
    }

    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Answer<Vec<(KeySnapshot, KeyUsageSnapshot)>> {
        let page = Page { limit, offset: 0 };
        Answer::Ours(KeysDriver::new(&mut self.0).fetch_keys_with_usage(tenant_id, since, page).unwrap())
    }

    fn by_prefix(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let mut keys = KeysDriver::new(&mut self.0);
        Answer::Ours(keys.fetch_keys_by_prefix(&prefix.tenant_id, prefix.text, None, limit).unwrap())
    }

    fn by_prefix_of_any_tenant(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let mut keys = KeysDriver::new(&mut self.0);
        Answer::Ours(keys.fetch_keys_of_any_tenant_by_prefix(prefix.text, None, limit).unwrap())
    }

    fn count(&mut self, tenant_id: &TenantId) -> Answer<i64> {
        Answer::Ours(KeysDriver::new(&mut self.0).count_keys(tenant_id).unwrap())
    }

    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> Answer<i64> {
        Answer::Ours(KeysDriver::new(&mut self.0).count_keys_up_to(tenant_id, bound).unwrap())
    }

    fn usage(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        since: DateTime<Utc>,
    ) -> Answer<KeyUsageSnapshot> {
        Answer::Ours(KeysDriver::new(&mut self.0).fetch_key_usage(tenant_id, key_id, since).unwrap())
    }

    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        hours: &[DateTime<Utc>],
    ) -> Answer<Vec<UsageBucket>> {
        let range = hours[0]..hours[hours.len() - 1];
        let mut keys = KeysDriver::new(&mut self.0);
        Answer::Ours(keys.fetch_key_usage_series(tenant_id, key_id, range, Bucket::Hour).unwrap())
    }

    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Answer<KeySnapshot> {
        Answer::Ours(freeze(&mut self.0, tenant_id, key_id, now))
    }

    fn update(&mut self, tenant_id: &TenantId, key_id: &KeyId, name: &str, rpm: i32) -> Answer<KeySnapshot> {
        let updated: Result<_, Error> = self.0.transaction(|conn| {
            let mut keys = KeysDriver::new(conn);
            let key = keys.fetch_key_for_update(tenant_id, key_id)?.expect("the key");
            let changes = KeyChanges {
                name: Change::Set(name),
                rate_limit_rpm: Change::Set(Some(rpm)),
                ..KeyChanges::default()
            };
            keys.update_key(key, &changes)
        });
        Answer::Ours(updated.unwrap())
    }

    fn record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64> {
        Answer::Ours(KeysDriver::new(&mut self.0).record_key_uses(uses).unwrap())
    }

    fn try_record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64> {
        let busy = KeysDriver::new(&mut self.0).try_record_key_uses(uses).unwrap();
        Answer::Ours(busy.len().try_into().unwrap())
    }
}

/// Begins, locks, freezes and commits.
pub fn freeze(
    conn: &mut PgConnection,
    tenant_id: &TenantId,
    key_id: &KeyId,
    now: DateTime<Utc>,
) -> KeySnapshot {
    let frozen: Result<_, Error> = conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let key = keys.fetch_key_for_update(tenant_id, key_id)?.expect("the key");
        keys.update_key_frozen(key, now)
    });
    frozen.unwrap()
}
