//! The postgres crate, which is a blocking interface to tokio-postgres.

use std::collections::HashMap;
use std::error::Error;

use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, KeyUse, TenantId, UsageBucket};
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use postgres::types::{FromSql, ToSql, Type};
use postgres::{Client, NoTls, Row, Statement};

use crate::answer::{Answer, Key, Usage, read_key};
use crate::contender::{Contender, Prefix};
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

    /// Begins, locks a key, changes it and commits.
    fn change(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        change: &sql::Statement,
        changes: &[&(dyn ToSql + Sync)],
    ) -> Answer<KeySnapshot> {
        let (lock, change) = (self.prepared(&sql::LOCK), self.prepared(change));
        let mut transaction = self.client.transaction().unwrap();
        let locked = key(&transaction.query_one(&lock, &[&tenant_id.as_str(), &key_id.as_str()]).unwrap());
        let place: [&(dyn ToSql + Sync); 3] = [&locked.tenant_id, &locked.id, &locked.revision];
        let changed = key(&transaction.query_one(&change, &[changes, &place].concat()).unwrap());
        transaction.commit().unwrap();
        Answer::Peer(changed)
    }
}

/// The key, the count and the time of each use, as arrays.
fn arrays(uses: &[KeyUse]) -> (Vec<&str>, Vec<i64>, Vec<DateTime<Utc>>) {
    (
        uses.iter().map(|used| used.key_id.as_str()).collect(),
        uses.iter().map(|used| used.count.into()).collect(),
        uses.iter().map(|used| used.at).collect(),
    )
}

fn of_name(name: &str) -> Type {
    match name {
        "text" => Type::TEXT,
        "text[]" => Type::TEXT_ARRAY,
        "integer" => Type::INT4,
        "bigint" => Type::INT8,
        "bigint[]" => Type::INT8_ARRAY,
        "boolean" => Type::BOOL,
        "timestamp with time zone" => Type::TIMESTAMPTZ,
        "timestamp with time zone[]" => Type::TIMESTAMPTZ_ARRAY,
        _ => panic!("no statement has had a parameter of type {name}"),
    }
}

/// A key whose row has its tenant after its id.
fn key(row: &Row) -> Key {
    read_key!(row, row.get(1), 2)
}

/// A key of a tenant, whose row has only the key's own id.
fn key_of(tenant_id: &TenantId, row: &Row) -> Key {
    read_key!(row, tenant_id.to_string(), 1)
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
        Answer::Peer(rows.iter().map(|row| key_of(tenant_id, row)).collect())
    }

    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Answer<Vec<(KeySnapshot, KeyUsageSnapshot)>> {
        let tenant = tenant_id.as_str();
        let rows = self.query(&sql::PAGE_WITH_USAGE, &[&tenant, &since, &tenant, &i64::from(limit)]);
        let read = |row| (key_of(tenant_id, row), usage(row, 12));
        Answer::Peer(rows.iter().map(read).collect())
    }

    fn by_prefix(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let (tenant_id, limit) = (prefix.tenant_id.as_str(), i64::from(limit));
        let rows = self.query(&sql::BY_PREFIX, &[&tenant_id, &prefix.text, &prefix.end, &limit, &tenant_id]);
        Answer::Peer(rows.iter().map(key).collect())
    }

    fn by_prefix_of_any_tenant(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let values: [&(dyn ToSql + Sync); 3] = [&prefix.text, &prefix.end, &i64::from(limit)];
        let rows = self.query(&sql::BY_PREFIX_OF_ANY_TENANT, &values);
        Answer::Peer(rows.iter().map(key).collect())
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
        let nobody = None::<&str>;
        self.change(tenant_id, key_id, &sql::FREEZE, &[&true, &now, &nobody, &nobody])
    }

    fn update(&mut self, tenant_id: &TenantId, key_id: &KeyId, name: &str, rpm: i32) -> Answer<KeySnapshot> {
        let (text, number, time) = (None::<&str>, None::<i32>, None::<DateTime<Utc>>);
        let changes: [&(dyn ToSql + Sync); 12] =
            [&true, &name, &false, &text, &false, &text, &true, &rpm, &false, &number, &false, &time];
        self.change(tenant_id, key_id, &sql::UPDATE, &changes)
    }

    fn record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64> {
        let statement = self.prepared(&sql::RECORD_USES);
        let (tenant_id, (key_ids, counts, times)) = (uses[0].tenant_id.as_str(), arrays(uses));
        let values: [&(dyn ToSql + Sync); 5] = [&key_ids, &counts, &times, &tenant_id, &tenant_id];
        Answer::Peer(self.client.execute(&statement, &values).unwrap().try_into().unwrap())
    }

    fn try_record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64> {
        let (tenant_id, (key_ids, counts, times)) = (uses[0].tenant_id.as_str(), arrays(uses));
        let values: [&(dyn ToSql + Sync); 6] =
            [&key_ids, &counts, &times, &tenant_id, &tenant_id, &tenant_id];
        let busy = self.query(&sql::TRY_RECORD_USES, &values);
        Answer::Peer(busy.len().try_into().unwrap())
    }
}
