use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, TenantId, UsageBucket};
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use tokio::runtime::{Builder, Runtime};

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

fn key(row: &PgRow) -> KeySnapshot {
    KeySnapshot {
        id: row.get::<String, _>(0).into(),
        tenant_id: row.get::<String, _>(1).into(),
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

fn usage(row: &PgRow, column: usize) -> KeyUsageSnapshot {
    let sum: Option<BigDecimal> = row.get(column + 1);
    KeyUsageSnapshot { request_count: row.get(column), spend_cents: sum.unwrap_or_default() }
}

impl Contender for Sqlx {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Option<KeySnapshot> {
        let query = sqlx::query(sql::ONE_KEY.as_str()).bind(tenant_id.as_str()).bind(key_id.as_str());
        self.runtime.block_on(query.fetch_optional(&mut self.conn)).unwrap().as_ref().map(key)
    }

    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Vec<KeySnapshot> {
        let query = sqlx::query(sql::PAGE.as_str()).bind(tenant_id.as_str()).bind(i64::from(limit));
        self.runtime.block_on(query.fetch_all(&mut self.conn)).unwrap().iter().map(key).collect()
    }

    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Vec<(KeySnapshot, KeyUsageSnapshot)> {
        let query = sqlx::query(sql::PAGE_WITH_USAGE.as_str())
            .bind(tenant_id.as_str())
            .bind(i64::from(limit))
            .bind(since);
        let rows = self.runtime.block_on(query.fetch_all(&mut self.conn)).unwrap();
        rows.iter().map(|row| (key(row), usage(row, 11))).collect()
    }

    fn count(&mut self, tenant_id: &TenantId) -> i64 {
        let query = sqlx::query(sql::COUNT.as_str()).bind(tenant_id.as_str());
        self.runtime.block_on(query.fetch_one(&mut self.conn)).unwrap().get(0)
    }

    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> i64 {
        let query = sqlx::query(sql::COUNT_UP_TO.as_str()).bind(tenant_id.as_str()).bind(i64::from(bound));
        self.runtime.block_on(query.fetch_one(&mut self.conn)).unwrap().get(0)
    }

    fn usage(&mut self, tenant_id: &TenantId, key_id: &KeyId, since: DateTime<Utc>) -> KeyUsageSnapshot {
        let query = sqlx::query(sql::USAGE).bind(tenant_id.as_str()).bind(key_id.as_str()).bind(since);
        usage(&self.runtime.block_on(query.fetch_one(&mut self.conn)).unwrap(), 0)
    }

    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
    ) -> Vec<UsageBucket> {
        let query =
            sqlx::query(sql::SERIES).bind(tenant_id.as_str()).bind(key_id.as_str()).bind(from).bind(to);
        let rows = self.runtime.block_on(query.fetch_all(&mut self.conn)).unwrap();
        rows.iter().map(|row| UsageBucket { start: row.get(0), usage: usage(row, 1) }).collect()
    }

    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> KeySnapshot {
        let conn = &mut self.conn;
        self.runtime.block_on(async {
            let mut transaction = conn.begin().await.unwrap();
            let lock = sqlx::query(sql::LOCK.as_str()).bind(tenant_id.as_str()).bind(key_id.as_str());
            let locked = key(&lock.fetch_one(&mut *transaction).await.unwrap());
            let freeze = sqlx::query(sql::FREEZE.as_str())
                .bind(locked.tenant_id.as_str())
                .bind(locked.id.as_str())
                .bind(now);
            let frozen = key(&freeze.fetch_one(&mut *transaction).await.unwrap());
            transaction.commit().await.unwrap();
            frozen
        })
    }
}
