//! What every contender can do. All answer in this crate's structs.

use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, TenantId, UsageBucket};
use chrono::{DateTime, Utc};

pub trait Contender {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Option<KeySnapshot>;
    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Vec<KeySnapshot>;
    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Vec<(KeySnapshot, KeyUsageSnapshot)>;
    fn count(&mut self, tenant_id: &TenantId) -> i64;
    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> i64;
    fn usage(&mut self, tenant_id: &TenantId, key_id: &KeyId, since: DateTime<Utc>) -> KeyUsageSnapshot;
    /// By the hour, between two full hours.
    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
    ) -> Vec<UsageBucket>;
    /// Begins, locks, freezes and commits.
    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> KeySnapshot;
}

/// Connects a contender by its name in the tables.
pub fn connect(name: &str, url: &str) -> Box<dyn Contender> {
    match name {
        "this crate" => Box::new(crate::ours::Ours::connect(url)),
        "libpq" => Box::new(crate::libpq::Libpq::connect(url)),
        "postgres" => Box::new(crate::postgres_crate::Postgres::connect(url)),
        "sqlx" => Box::new(crate::sqlx_crate::Sqlx::connect(url)),
        "plain Diesel" => Box::new(crate::plain_diesel::PlainDiesel::connect(url)),
        _ => panic!("no contender is called {name}"),
    }
}

pub const NAMES: [&str; 5] = ["libpq", "this crate", "postgres", "sqlx", "plain Diesel"];
