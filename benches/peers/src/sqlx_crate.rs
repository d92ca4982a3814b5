//! sqlx, on a runtime of one thread.

use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, KeyUse, TenantId, UsageBucket};
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use tokio::runtime::{Builder, Runtime};

use crate::answer::{Answer, Key, Usage, read_key};
use crate::contender::{Contender, Prefix};
use crate::sql;

pub struct Sqlx {
    conn: PgConnection,
    runtime: Runtime,
}

impl Sqlx {
    pub fn connect(url: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let conn = runtime.block_on(PgConnection::connect(url)).unwrap();
        Self { conn, runtime }
    }

    /// Begins, locks a key, changes it and commits.
    fn change(&mut self, tenant_id: &TenantId, key_id: &KeyId, change: Query<'_>) -> Answer<KeySnapshot> {
        let conn = &mut self.conn;
        self.runtime.block_on(async {
            let mut transaction = conn.begin().await.unwrap();
            let lock = sqlx::query(sql::LOCK.sql).bind(tenant_id.as_str()).bind(key_id.as_str());
            let locked = key(&lock.fetch_one(&mut *transaction).await.unwrap());
            let change = change.bind(locked.tenant_id).bind(locked.id).bind(locked.revision);
            let changed = key(&change.fetch_one(&mut *transaction).await.unwrap());
            transaction.commit().await.unwrap();
            Answer::Peer(changed)
        })
    }
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// A statement with the key, the count and the time of each use, as arrays.
fn with_arrays<'q>(sql: &'static str, uses: &[KeyUse]) -> Query<'q> {
    sqlx::query(sql)
        .bind(uses.iter().map(|used| used.key_id.to_string()).collect::<Vec<_>>())
        .bind(uses.iter().map(|used| i64::from(used.count)).collect::<Vec<_>>())
        .bind(uses.iter().map(|used| used.at).collect::<Vec<_>>())
}

/// A key whose row has its tenant after its id.
fn key(row: &PgRow) -> Key {
    read_key!(row, row.get(1), 2)
}

/// A key of a tenant, whose row has only the key's own id.
fn key_of(tenant_id: &TenantId, row: &PgRow) -> Key {
    read_key!(row, tenant_id.to_string(), 1)
}

fn usage(row: &PgRow, column: usize) -> Usage {
    Usage {
        request_count: row.get(column),
        spend_cents: row.get(column + 1),
        is_rounded: row.get(column + 2),
    }
}

impl Contender for Sqlx {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Answer<Option<KeySnapshot>> {
        let query = sqlx::query(sql::ONE_KEY.sql).bind(tenant_id.as_str()).bind(key_id.as_str());
        let row = self.runtime.block_on(query.fetch_optional(&mut self.conn)).unwrap();
        Answer::Peer(row.as_ref().map(key))
    }

    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let query = sqlx::query(sql::PAGE.sql).bind(tenant_id.as_str()).bind(i64::from(limit));
        let rows = self.runtime.block_on(query.fetch_all(&mut self.conn)).unwrap();
        Answer::Peer(rows.iter().map(|row| key_of(tenant_id, row)).collect())
    }

    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Answer<Vec<(KeySnapshot, KeyUsageSnapshot)>> {
        let query = sqlx::query(sql::PAGE_WITH_USAGE.sql)
            .bind(tenant_id.as_str())
            .bind(since)
            .bind(tenant_id.as_str())
            .bind(i64::from(limit));
        let rows = self.runtime.block_on(query.fetch_all(&mut self.conn)).unwrap();
        let read = |row| (key_of(tenant_id, row), usage(row, 12));
        Answer::Peer(rows.iter().map(read).collect())
    }

    fn by_prefix(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let query = sqlx::query(sql::BY_PREFIX.sql)
            .bind(prefix.tenant_id.as_str())
            .bind(prefix.text)
            .bind(prefix.end)
            .bind(i64::from(limit))
            .bind(prefix.tenant_id.as_str());
        let rows = self.runtime.block_on(query.fetch_all(&mut self.conn)).unwrap();
        Answer::Peer(rows.iter().map(key).collect())
    }

    fn by_prefix_of_any_tenant(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let query = sqlx::query(sql::BY_PREFIX_OF_ANY_TENANT.sql)
            .bind(prefix.text)
            .bind(prefix.end)
            .bind(i64::from(limit));
        let rows = self.runtime.block_on(query.fetch_all(&mut self.conn)).unwrap();
        Answer::Peer(rows.iter().map(key).collect())
    }

    fn count(&mut self, tenant_id: &TenantId) -> Answer<i64> {
        let query = sqlx::query(sql::COUNT.sql).bind(tenant_id.as_str());
        Answer::Peer(self.runtime.block_on(query.fetch_one(&mut self.conn)).unwrap().get(0))
    }

    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> Answer<i64> {
        let query = sqlx::query(sql::COUNT_UP_TO.sql).bind(tenant_id.as_str()).bind(i64::from(bound));
        Answer::Peer(self.runtime.block_on(query.fetch_one(&mut self.conn)).unwrap().get(0))
    }

    fn usage(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        since: DateTime<Utc>,
    ) -> Answer<KeyUsageSnapshot> {
        let query = sqlx::query(sql::USAGE.sql).bind(tenant_id.as_str()).bind(key_id.as_str()).bind(since);
        Answer::Peer(usage(&self.runtime.block_on(query.fetch_one(&mut self.conn)).unwrap(), 0))
    }

    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        hours: &[DateTime<Utc>],
    ) -> Answer<Vec<UsageBucket>> {
        let query = sqlx::query(sql::SERIES.sql).bind(tenant_id.as_str()).bind(key_id.as_str()).bind(hours);
        let rows = self.runtime.block_on(query.fetch_all(&mut self.conn)).unwrap();
        Answer::Peer(hours.iter().zip(&rows).map(|(start, row)| (*start, usage(row, 0))).collect())
    }

    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Answer<KeySnapshot> {
        let freeze = sqlx::query(sql::FREEZE.sql).bind(true).bind(now).bind(None::<&str>).bind(None::<&str>);
        self.change(tenant_id, key_id, freeze)
    }

    fn update(&mut self, tenant_id: &TenantId, key_id: &KeyId, name: &str, rpm: i32) -> Answer<KeySnapshot> {
        let update = sqlx::query(sql::UPDATE.sql)
            .bind(true)
            .bind(name.to_owned())
            .bind(false)
            .bind(None::<&str>)
            .bind(false)
            .bind(None::<&str>)
            .bind(true)
            .bind(rpm)
            .bind(false)
            .bind(None::<i32>)
            .bind(false)
            .bind(None::<DateTime<Utc>>);
        self.change(tenant_id, key_id, update)
    }

    fn record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64> {
        let query = with_arrays(sql::RECORD_USES.sql, uses)
            .bind(uses[0].tenant_id.as_str())
            .bind(uses[0].tenant_id.as_str());
        let done = self.runtime.block_on(query.execute(&mut self.conn)).unwrap();
        Answer::Peer(done.rows_affected().try_into().unwrap())
    }

    fn try_record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64> {
        let query = with_arrays(sql::TRY_RECORD_USES.sql, uses)
            .bind(uses[0].tenant_id.as_str())
            .bind(uses[0].tenant_id.as_str())
            .bind(uses[0].tenant_id.as_str());
        let busy = self.runtime.block_on(query.fetch_all(&mut self.conn)).unwrap();
        Answer::Peer(busy.len().try_into().unwrap())
    }
}
