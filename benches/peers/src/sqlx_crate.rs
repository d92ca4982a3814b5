//! sqlx, on a runtime of one thread.

use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, TenantId, UsageBucket};
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use tokio::runtime::{Builder, Runtime};

use crate::answer::{Answer, Key, Usage};
use crate::contender::Contender;
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
}

/// A key whose row has its tenant behind its id.
fn key(row: &PgRow) -> Key {
    key_of(row.get(1), row, 2)
}

/// A key whose columns but for its ids begin with the `nth`.
fn key_of(tenant_id: String, row: &PgRow, nth: usize) -> Key {
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
        Answer::Peer(rows.iter().map(|row| key_of(tenant_id.to_string(), row, 1)).collect())
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
        let read = |row| (key_of(tenant_id.to_string(), row, 1), usage(row, 12));
        Answer::Peer(rows.iter().map(read).collect())
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
        let conn = &mut self.conn;
        self.runtime.block_on(async {
            let mut transaction = conn.begin().await.unwrap();
            let lock = sqlx::query(sql::LOCK.sql).bind(tenant_id.as_str()).bind(key_id.as_str());
            let locked = key(&lock.fetch_one(&mut *transaction).await.unwrap());
            let freeze = sqlx::query(sql::FREEZE.sql)
                .bind(true)
                .bind(now)
                .bind(None::<&str>)
                .bind(None::<&str>)
                .bind(&locked.tenant_id)
                .bind(&locked.id)
                .bind(locked.revision);
            let frozen = key(&freeze.fetch_one(&mut *transaction).await.unwrap());
            transaction.commit().await.unwrap();
            Answer::Peer(frozen)
        })
    }
}
