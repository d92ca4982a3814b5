//! The code that Diesel's guide leads to.

use api_keys_driver::schema::{api_keys, proxy_calls};
use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, TenantId, UsageBucket};
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::dsl::{count_star, sum};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Numeric, Text, Timestamptz};

use crate::contender::Contender;

pub struct PlainDiesel(PgConnection);

impl PlainDiesel {
    pub fn connect(url: &str) -> Self {
        Self(PgConnection::establish(url).unwrap())
    }
}

#[derive(QueryableByName)]
struct Hour {
    #[diesel(sql_type = Timestamptz)]
    start: DateTime<Utc>,
    #[diesel(sql_type = BigInt)]
    count: i64,
    #[diesel(sql_type = Nullable<Numeric>)]
    sum: Option<BigDecimal>,
}

impl Contender for PlainDiesel {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Option<KeySnapshot> {
        api_keys::table
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .select(KeySnapshot::as_select())
            .first(&mut self.0)
            .optional()
            .unwrap()
    }

    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Vec<KeySnapshot> {
        api_keys::table
            .filter(api_keys::tenant_id.eq(tenant_id))
            .order((api_keys::created_at.desc(), api_keys::id.desc()))
            .limit(limit.into())
            .offset(0)
            .select(KeySnapshot::as_select())
            .load(&mut self.0)
            .unwrap()
    }

    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Vec<(KeySnapshot, KeyUsageSnapshot)> {
        let keys = self.page(tenant_id, limit).into_iter();
        keys.map(|key| {
            let usage = self.usage(tenant_id, &key.id, since);
            (key, usage)
        })
        .collect()
    }

    fn count(&mut self, tenant_id: &TenantId) -> i64 {
        api_keys::table.filter(api_keys::tenant_id.eq(tenant_id)).count().get_result(&mut self.0).unwrap()
    }

    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> i64 {
        self.count(tenant_id).min(bound.into())
    }

    fn usage(&mut self, tenant_id: &TenantId, key_id: &KeyId, since: DateTime<Utc>) -> KeyUsageSnapshot {
        let (request_count, spend_cents) = proxy_calls::table
            .filter(proxy_calls::tenant_id.eq(tenant_id))
            .filter(proxy_calls::api_key_id.eq(key_id))
            .filter(proxy_calls::created_at.ge(since))
            .select((count_star(), sum(proxy_calls::cost_cents)))
            .get_result::<(i64, Option<BigDecimal>)>(&mut self.0)
            .unwrap();
        KeyUsageSnapshot { request_count, spend_cents: spend_cents.unwrap_or_default() }
    }

    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
    ) -> Vec<UsageBucket> {
        let hours: Vec<Hour> = diesel::sql_query(
            "SELECT start, count(id), sum(cost_cents)
             FROM generate_series($3, $4 - interval '1 microsecond', interval '1 hour') AS start
             LEFT JOIN proxy_calls ON tenant_id = $1 AND api_key_id = $2 AND created_at >= $3 AND created_at < $4
                                      AND date_trunc('hour', created_at) = start
             GROUP BY start ORDER BY start",
        )
        .bind::<Text, _>(tenant_id)
        .bind::<Text, _>(key_id)
        .bind::<Timestamptz, _>(from)
        .bind::<Timestamptz, _>(to)
        .load(&mut self.0)
        .unwrap();
        let usage = |hour: &mut Hour| KeyUsageSnapshot {
            request_count: hour.count,
            spend_cents: hour.sum.take().unwrap_or_default(),
        };
        hours.into_iter().map(|mut hour| UsageBucket { start: hour.start, usage: usage(&mut hour) }).collect()
    }

    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> KeySnapshot {
        self.0
            .transaction(|conn| {
                let key: KeySnapshot = api_keys::table
                    .filter(api_keys::tenant_id.eq(tenant_id))
                    .filter(api_keys::id.eq(key_id))
                    .select(KeySnapshot::as_select())
                    .for_no_key_update()
                    .get_result(conn)?;
                diesel::update(api_keys::table)
                    .filter(api_keys::tenant_id.eq(&key.tenant_id))
                    .filter(api_keys::id.eq(&key.id))
                    .set((api_keys::is_frozen.eq(true), api_keys::frozen_at.eq(now)))
                    .returning(KeySnapshot::as_returning())
                    .get_result(conn)
            })
            .map_err(|error: diesel::result::Error| error)
            .unwrap()
    }
}
