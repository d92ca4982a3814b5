//! Rows of the tables as another program may write them.

use api_keys_driver::BigDecimal;
use api_keys_driver::schema::{api_keys, proxy_calls};
use chrono::{DateTime, Utc};
use diesel::prelude::*;

use super::{TENANT, at};

/// A row of `api_keys`. Columns that a test does not set have ordinary values.
#[derive(Clone, Debug, Insertable)]
#[diesel(table_name = api_keys)]
pub(crate) struct KeyRow<'a> {
    pub(crate) id: &'a str,
    pub(crate) tenant_id: &'a str,
    pub(crate) user_id: Option<&'a str>,
    pub(crate) name: &'a str,
    pub(crate) key_prefix: &'a str,
    /// The hash. `None` stands for the id.
    pub(crate) key_hash: Option<&'a str>,
    pub(crate) permissions_json: Option<&'a str>,
    pub(crate) allowed_workers_json: Option<&'a str>,
    pub(crate) rate_limit_rpm: Option<i32>,
    pub(crate) max_concurrent_runs: Option<i32>,
    pub(crate) status: &'a str,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) revoked_at: Option<DateTime<Utc>>,
    pub(crate) revoked_reason: Option<&'a str>,
    pub(crate) last_used_at: Option<DateTime<Utc>>,
    pub(crate) total_requests: i64,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) is_synthetic: bool,
    pub(crate) is_frozen: bool,
    pub(crate) frozen_at: Option<DateTime<Utc>>,
}

impl Default for KeyRow<'_> {
    fn default() -> Self {
        Self {
            id: "key",
            tenant_id: TENANT,
            user_id: None,
            name: "Production",
            key_prefix: "sk-live-abcd",
            key_hash: None,
            permissions_json: None,
            allowed_workers_json: None,
            rate_limit_rpm: None,
            max_concurrent_runs: None,
            status: "active",
            expires_at: None,
            revoked_at: None,
            revoked_reason: None,
            last_used_at: None,
            total_requests: 0,
            created_at: at("2026-01-01T00:00:00Z"),
            is_synthetic: false,
            is_frozen: false,
            frozen_at: None,
        }
    }
}

impl KeyRow<'_> {
    pub(crate) fn insert(&self, conn: &mut PgConnection) {
        let row = Self { key_hash: self.key_hash.or(Some(self.id)), ..self.clone() };
        diesel::insert_into(api_keys::table).values(&row).execute(conn).expect("a key");
    }
}

/// A row of `proxy_calls`. Columns that a test does not set have ordinary values.
#[derive(Clone, Debug, Insertable)]
#[diesel(table_name = proxy_calls)]
pub(crate) struct CallRow<'a> {
    pub(crate) id: &'a str,
    pub(crate) tenant_id: &'a str,
    pub(crate) api_key_id: Option<&'a str>,
    pub(crate) endpoint: &'a str,
    pub(crate) model: &'a str,
    pub(crate) request_hash: &'a str,
    pub(crate) request_json: &'a str,
    pub(crate) cost_cents: Option<BigDecimal>,
    pub(crate) was_blocked: Option<bool>,
    pub(crate) replayed_from_id: Option<&'a str>,
    pub(crate) created_at: DateTime<Utc>,
}

impl Default for CallRow<'_> {
    fn default() -> Self {
        Self {
            id: "call",
            tenant_id: TENANT,
            api_key_id: Some("key"),
            endpoint: "/v1/chat/completions",
            model: "small",
            request_hash: "hash",
            request_json: "{}",
            cost_cents: None,
            was_blocked: Some(false),
            replayed_from_id: None,
            created_at: at("2026-01-01T00:00:00Z"),
        }
    }
}

impl CallRow<'_> {
    pub(crate) fn insert(&self, conn: &mut PgConnection) {
        diesel::insert_into(proxy_calls::table).values(self).execute(conn).expect("a call");
    }
}
