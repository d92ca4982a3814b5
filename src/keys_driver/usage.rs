//! What a key's calls add up to.

use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::dsl::{count_star, sum};
use diesel::prelude::*;

use super::KeysDriver;
use crate::schema::proxy_calls;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{KeyId, Result, TenantId};

/// What a key's calls add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct KeyUsageSnapshot {
    /// All calls: blocked and replayed ones too.
    pub request_count: i64,
    /// What the calls cost in cents, exact to the fourth decimal.
    pub spend_cents: BigDecimal,
}

impl KeysDriver<'_> {
    /// Adds up the calls that were made with a key since a moment, that moment included.
    ///
    /// Every call counts, also a blocked or replayed one; one without a cost spends 0. A key that has
    /// no such call, or does not exist, or is another tenant's, has used nothing: 0 and 0. Calls
    /// outlive their key, and so does their usage.
    pub fn fetch_key_usage(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        since: DateTime<Utc>,
    ) -> Result<KeyUsageSnapshot> {
        let (request_count, spend_cents) = proxy_calls::table
            .filter(proxy_calls::tenant_id.eq(tenant_id))
            .filter(proxy_calls::api_key_id.eq(key_id))
            .filter(proxy_calls::created_at.ge(Time::from(since)))
            .select((count_star(), sum(proxy_calls::cost_cents)))
            .read_one::<(i64, Option<BigDecimal>)>(self.conn)?;
        Ok(KeyUsageSnapshot { request_count, spend_cents: spend_cents.unwrap_or_default() })
    }
}
