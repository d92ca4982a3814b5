use std::collections::HashMap;
use std::error::Error;

use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, TenantId, UsageBucket};
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use postgres::types::{FromSql, ToSql, Type};
use postgres::{Client, GenericClient, NoTls, Row, Statement};

use crate::contender::Contender;
use crate::{decode, sql};

pub struct Postgres {
    client: Client,
    statements: HashMap<*const u8, Statement>,
}

/// The crate has no type of its own for `numeric`.
struct Decimal(BigDecimal);

impl<'a> FromSql<'a> for Decimal {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(decode::numeric(raw)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::NUMERIC
    }
}

impl Postgres {
    pub fn connect(url: &str) -> Self {
        Self { client: Client::connect(url, NoTls).unwrap(), statements: HashMap::new() }
    }

    fn prepared(&mut self, sql: &'static str) -> Statement {
        let client = &mut self.client;
        self.statements.entry(sql.as_ptr()).or_insert_with(|| client.prepare(sql).unwrap()).clone()
    }

    fn query(&mut self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        let statement = self.prepared(sql);
        self.client.query(&statement, values).unwrap()
    }
}

fn key(row: &Row) -> KeySnapshot {
    KeySnapshot {
        id: row.get::<_, String>(0).into(),
        tenant_id: row.get::<_, String>(1).into(),
        name: row.get(2),
        key_prefix: row.get(3),
        status: row.get(4),
        is_frozen: row.get(5),
        frozen_at: row.get(6),
        created_at: row.get(7),
        last_used_at: row.get(8),
        expires_at: row.get(9),
        total_requests: row.get(10),
    }
}

fn usage(row: &Row, column: usize) -> KeyUsageSnapshot {
    let sum: Option<Decimal> = row.get(column + 1);
    KeyUsageSnapshot { request_count: row.get(column), spend_cents: sum.map(|sum| sum.0).unwrap_or_default() }
}

impl Contender for Postgres {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Option<KeySnapshot> {
        self.query(&sql::ONE_KEY, &[&tenant_id.as_str(), &key_id.as_str()]).first().map(key)
    }

    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Vec<KeySnapshot> {
        self.query(&sql::PAGE, &[&tenant_id.as_str(), &i64::from(limit)]).iter().map(key).collect()
    }

    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Vec<(KeySnapshot, KeyUsageSnapshot)> {
        let rows = self.query(&sql::PAGE_WITH_USAGE, &[&tenant_id.as_str(), &i64::from(limit), &since]);
        rows.iter().map(|row| (key(row), usage(row, 11))).collect()
    }

    fn count(&mut self, tenant_id: &TenantId) -> i64 {
        self.query(&sql::COUNT, &[&tenant_id.as_str()])[0].get(0)
    }

    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> i64 {
        self.query(&sql::COUNT_UP_TO, &[&tenant_id.as_str(), &i64::from(bound)])[0].get(0)
    }

    fn usage(&mut self, tenant_id: &TenantId, key_id: &KeyId, since: DateTime<Utc>) -> KeyUsageSnapshot {
        usage(&self.query(sql::USAGE, &[&tenant_id.as_str(), &key_id.as_str(), &since])[0], 0)
    }

    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
    ) -> Vec<UsageBucket> {
        let rows = self.query(sql::SERIES, &[&tenant_id.as_str(), &key_id.as_str(), &from, &to]);
        rows.iter().map(|row| UsageBucket { start: row.get(0), usage: usage(row, 1) }).collect()
    }

    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> KeySnapshot {
        let (lock, freeze) = (self.prepared(&sql::LOCK), self.prepared(&sql::FREEZE));
        let mut transaction = self.client.transaction().unwrap();
        let locked = key(&transaction.query_one(&lock, &[&tenant_id.as_str(), &key_id.as_str()]).unwrap());
        let values: [&(dyn ToSql + Sync); 3] = [&locked.tenant_id.as_str(), &locked.id.as_str(), &now];
        let frozen = key(&GenericClient::query_one(&mut transaction, &freeze, &values).unwrap());
        transaction.commit().unwrap();
        frozen
    }
}
