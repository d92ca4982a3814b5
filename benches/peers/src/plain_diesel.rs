//! The code that Diesel's guide leads to.

use api_keys_driver::schema::{api_keys, proxy_calls};
use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, KeyUse, TenantId, UsageBucket};
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::dsl::{count_star, sum};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Numeric, Text, Timestamptz};

use crate::answer::{Answer, Key, Usage};
use crate::contender::{Contender, Prefix};

pub struct PlainDiesel(PgConnection);

impl PlainDiesel {
    pub fn connect(url: &str) -> Self {
        Self(PgConnection::establish(url).unwrap())
    }

    fn keys(&mut self, tenant_id: &TenantId, limit: u32) -> Vec<Key> {
        api_keys::table
            .filter(api_keys::tenant_id.eq(tenant_id))
            .order((api_keys::created_at.desc(), api_keys::id.desc()))
            .limit(limit.into())
            .offset(0)
            .select(Key::as_select())
            .load(&mut self.0)
            .unwrap()
    }

    fn keys_of(&mut self, tenant_id: &TenantId) -> i64 {
        api_keys::table.filter(api_keys::tenant_id.eq(tenant_id)).count().get_result(&mut self.0).unwrap()
    }

    fn with_prefix(&mut self, tenant_id: Option<&TenantId>, prefix: &str, limit: u32) -> Vec<Key> {
        let mut keys = api_keys::table
            .filter(api_keys::key_prefix.like(format!("{prefix}%")))
            .order((api_keys::created_at.desc(), api_keys::id.desc()))
            .limit(limit.into())
            .select(Key::as_select())
            .into_boxed();
        if let Some(tenant_id) = tenant_id {
            keys = keys.filter(api_keys::tenant_id.eq(tenant_id));
        }
        keys.load(&mut self.0).unwrap()
    }

    fn usage_of(&mut self, tenant_id: &TenantId, key_id: &str, since: DateTime<Utc>) -> Usage {
        let (count, sum) = proxy_calls::table
            .filter(proxy_calls::tenant_id.eq(tenant_id))
            .filter(proxy_calls::api_key_id.eq(key_id))
            .filter(proxy_calls::created_at.ge(since))
            .select((count_star(), sum(proxy_calls::cost_cents)))
            .get_result(&mut self.0)
            .unwrap();
        exact(count, sum)
    }
}

/// A plain sum rounds no end of its range.
fn exact(request_count: i64, spend: Option<BigDecimal>) -> Usage {
    Usage { request_count, spend_cents: spend.unwrap_or_default(), is_rounded: false }
}

#[diesel::declare_sql_function]
extern "SQL" {
    fn greatest(one: Nullable<Timestamptz>, other: Timestamptz) -> Nullable<Timestamptz>;
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
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Answer<Option<KeySnapshot>> {
        let key = api_keys::table
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .select(Key::as_select())
            .first(&mut self.0)
            .optional()
            .unwrap();
        Answer::Peer(key)
    }

    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Answer<Vec<KeySnapshot>> {
        Answer::Peer(self.keys(tenant_id, limit))
    }

    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Answer<Vec<(KeySnapshot, KeyUsageSnapshot)>> {
        let keys = self.keys(tenant_id, limit).into_iter();
        let keys = keys.map(|key| {
            let usage = self.usage_of(tenant_id, &key.id, since);
            (key, usage)
        });
        Answer::Peer(keys.collect())
    }

    fn by_prefix(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>> {
        Answer::Peer(self.with_prefix(Some(&prefix.tenant_id), prefix.text, limit))
    }

    fn by_prefix_of_any_tenant(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>> {
        Answer::Peer(self.with_prefix(None, prefix.text, limit))
    }

    fn count(&mut self, tenant_id: &TenantId) -> Answer<i64> {
        Answer::Peer(self.keys_of(tenant_id))
    }

    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> Answer<i64> {
        Answer::Peer(self.keys_of(tenant_id).min(bound.into()))
    }

    fn usage(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        since: DateTime<Utc>,
    ) -> Answer<KeyUsageSnapshot> {
        Answer::Peer(self.usage_of(tenant_id, key_id.as_str(), since))
    }

    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        hours: &[DateTime<Utc>],
    ) -> Answer<Vec<UsageBucket>> {
        let (from, to) = (hours[0], hours[hours.len() - 1]);
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
        let read = |hour: Hour| (hour.start, exact(hour.count, hour.sum));
        Answer::Peer(hours.into_iter().map(read).collect())
    }

    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Answer<KeySnapshot> {
        let changed = self.0.transaction(|conn| {
            let key = lock(conn, tenant_id, key_id)?;
            diesel::update(api_keys::table)
                .filter(api_keys::tenant_id.eq(&key.tenant_id))
                .filter(api_keys::id.eq(&key.id))
                .set((api_keys::is_frozen.eq(true), api_keys::frozen_at.eq(now)))
                .returning(Key::as_returning())
                .get_result(conn)
        });
        Answer::Peer(changed.unwrap())
    }

    fn update(&mut self, tenant_id: &TenantId, key_id: &KeyId, name: &str, rpm: i32) -> Answer<KeySnapshot> {
        let changed = self.0.transaction(|conn| {
            let key = lock(conn, tenant_id, key_id)?;
            diesel::update(api_keys::table)
                .filter(api_keys::tenant_id.eq(&key.tenant_id))
                .filter(api_keys::id.eq(&key.id))
                .set((api_keys::name.eq(name), api_keys::rate_limit_rpm.eq(rpm)))
                .returning(Key::as_returning())
                .get_result(conn)
        });
        Answer::Peer(changed.unwrap())
    }

    fn record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64> {
        let changed: QueryResult<usize> =
            self.0.transaction(|conn| uses.iter().map(|used| record_use(conn, used)).sum());
        Answer::Peer(changed.unwrap().try_into().unwrap())
    }

    fn try_record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64> {
        let busy: QueryResult<usize> = self.0.transaction(|conn| {
            let free: Vec<KeyId> = api_keys::table
                .filter(api_keys::tenant_id.eq(&uses[0].tenant_id))
                .filter(api_keys::id.eq_any(uses.iter().map(|used| &used.key_id)))
                .order(api_keys::id)
                .for_no_key_update()
                .skip_locked()
                .select(api_keys::id)
                .load(conn)?;
            let (free, busy): (Vec<_>, Vec<_>) = uses.iter().partition(|used| free.contains(&used.key_id));
            free.into_iter().try_for_each(|used| record_use(conn, used).map(drop))?;
            Ok(busy.len())
        });
        Answer::Peer(busy.unwrap().try_into().unwrap())
    }
}

fn lock(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> QueryResult<Key> {
    api_keys::table
        .filter(api_keys::tenant_id.eq(tenant_id))
        .filter(api_keys::id.eq(key_id))
        .select(Key::as_select())
        .for_no_key_update()
        .get_result(conn)
}

fn record_use(conn: &mut PgConnection, used: &KeyUse) -> QueryResult<usize> {
    diesel::update(api_keys::table)
        .filter(api_keys::tenant_id.eq(&used.tenant_id))
        .filter(api_keys::id.eq(&used.key_id))
        .set((
            api_keys::total_requests.eq(api_keys::total_requests + i64::from(used.count)),
            api_keys::last_used_at.eq(greatest(api_keys::last_used_at, used.at)),
        ))
        .execute(conn)
}
