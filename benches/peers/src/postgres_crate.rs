//! The postgres crate, which is tokio-postgres behind a blocking front.

use std::collections::HashMap;
use std::error::Error;

use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, TenantId, UsageBucket};
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use postgres::types::{FromSql, ToSql, Type};
use postgres::{Client, GenericClient, NoTls, Row, Statement};

use crate::answer::{Answer, Key, Usage};
use crate::contender::Contender;
use crate::{decode, sql};

pub struct Postgres {
    client: Client,
    statements: HashMap<&'static str, Statement>,
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

    fn prepared(&mut self, sql: &sql::Statement) -> Statement {
        let client = &mut self.client;
        let prepare = || {
            let types: Vec<Type> = sql.types.iter().copied().map(of_name).collect();
            client.prepare_typed(sql.sql, &types).unwrap()
        };
        self.statements.entry(sql.name).or_insert_with(prepare).clone()
    }

    fn query(&mut self, sql: &sql::Statement, values: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        let statement = self.prepared(sql);
        self.client.query(&statement, values).unwrap()
    }
}

fn of_name(name: &str) -> Type {
    match name {
        "text" => Type::TEXT,
        "bigint" => Type::INT8,
        "boolean" => Type::BOOL,
        "timestamp with time zone" => Type::TIMESTAMPTZ,
        "timestamp with time zone[]" => Type::TIMESTAMPTZ_ARRAY,
        _ => panic!("no statement has had a parameter of type {name}"),
    }
}

/// A key whose row has its tenant behind its id.
fn key(row: &Row) -> Key {
    key_of(row.get(1), row, 2)
}

/// A key whose columns but for its ids begin with the `nth`.
fn key_of(tenant_id: String, row: &Row, nth: usize) -> Key {
    Key {
        id: row.get(0),
        tenant_id,
        name: row.get(nth),
        key_prefix: row.get(nth + 1),
        status: row.get(nth + 2),
        is_frozen: row.get(nth + 3),
        frozen_at: row.get(nth + 4),
        created_at: row.get(nth + 5),
        last_used_at: row.get(nth + 6),
        expires_at: row.get(nth + 7),
        total_requests: row.get(nth + 8),
        is_synthetic: row.get(nth + 9),
        revision: row.get(nth + 10),
    }
}

fn usage(row: &Row, column: usize) -> Usage {
    let Decimal(spend_cents) = row.get(column + 1);
    Usage { request_count: row.get(column), spend_cents, is_rounded: row.get(column + 2) }
}

impl Contender for Postgres {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Answer<Option<KeySnapshot>> {
        let rows = self.query(&sql::ONE_KEY, &[&tenant_id.as_str(), &key_id.as_str()]);
        Answer::Peer(rows.first().map(key))
    }

    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let rows = self.query(&sql::PAGE, &[&tenant_id.as_str(), &i64::from(limit)]);
        Answer::Peer(rows.iter().map(|row| key_of(tenant_id.to_string(), row, 1)).collect())
    }

    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Answer<Vec<(KeySnapshot, KeyUsageSnapshot)>> {
        let tenant = tenant_id.as_str();
        let rows = self.query(&sql::PAGE_WITH_USAGE, &[&tenant, &since, &tenant, &i64::from(limit)]);
        let read = |row| (key_of(tenant_id.to_string(), row, 1), usage(row, 12));
        Answer::Peer(rows.iter().map(read).collect())
    }

    fn count(&mut self, tenant_id: &TenantId) -> Answer<i64> {
        Answer::Peer(self.query(&sql::COUNT, &[&tenant_id.as_str()])[0].get(0))
    }

    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> Answer<i64> {
        Answer::Peer(self.query(&sql::COUNT_UP_TO, &[&tenant_id.as_str(), &i64::from(bound)])[0].get(0))
    }

    fn usage(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        since: DateTime<Utc>,
    ) -> Answer<KeyUsageSnapshot> {
        let rows = self.query(&sql::USAGE, &[&tenant_id.as_str(), &key_id.as_str(), &since]);
        Answer::Peer(usage(&rows[0], 0))
    }

    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        hours: &[DateTime<Utc>],
    ) -> Answer<Vec<UsageBucket>> {
        let rows = self.query(&sql::SERIES, &[&tenant_id.as_str(), &key_id.as_str(), &hours]);
        Answer::Peer(hours.iter().zip(&rows).map(|(start, row)| (*start, usage(row, 0))).collect())
    }

    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Answer<KeySnapshot> {
        let (lock, freeze) = (self.prepared(&sql::LOCK), self.prepared(&sql::FREEZE));
        let mut transaction = self.client.transaction().unwrap();
        let locked = key(&transaction.query_one(&lock, &[&tenant_id.as_str(), &key_id.as_str()]).unwrap());
        let nobody = None::<&str>;
        let values: [&(dyn ToSql + Sync); 7] =
            [&true, &now, &nobody, &nobody, &locked.tenant_id, &locked.id, &locked.revision];
        let frozen = key(&GenericClient::query_one(&mut transaction, &freeze, &values).unwrap());
        transaction.commit().unwrap();
        Answer::Peer(frozen)
    }
}
