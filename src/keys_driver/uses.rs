//! Recording uses of keys: their counter and the time of the last use. The sums over calls are in `usage.rs`.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Text, Timestamptz};

use super::{KeysDriver, row_count};
use crate::send::RunStatement;
use crate::time::Time;
use crate::{KeyId, Result, TenantId};

/// Uses of a key to record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct KeyUse {
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// The key that was used.
    pub key_id: KeyId,
    /// The number of uses.
    pub count: u32,
    /// The time of the last of these uses, in UTC.
    pub at: DateTime<Utc>,
}

impl KeysDriver<'_> {
    /// Records a batch of uses in one statement, and returns the number of changed keys.
    ///
    /// The statement adds the count of each key to `total_requests`, which stops at the largest `bigint`. Concurrent
    /// uses are not lost. `last_used_at` never moves back. The batch may hold several uses of the same key, which are
    /// added up. A use of a key that the tenant does not have changes nothing and is not counted. A recorded use is
    /// not a change of the key: it does not change the revision, and no event is appended.
    ///
    /// The batch waits if another transaction holds the lock of one of its keys. To avoid the wait, call
    /// [`try_record_key_uses`](Self::try_record_key_uses). No element makes the batch fail: a time outside
    /// PostgreSQL's range becomes `infinity` or `-infinity`, and an id with a NUL byte is skipped. Only if the database's
    /// encoding is not UTF-8, an id with a character that it lacks makes the batch fail, with
    /// [`Error::UnencodableText`](crate::Error::UnencodableText). No key has such an id.
    ///
    /// The rows are locked in the order of tenant and key, until the transaction ends. So batches that overlap wait
    /// for each other and do not deadlock, as long as each transaction records one batch and locks nothing before
    /// it. The keys may belong to several tenants. If all belong to one tenant, a server that is sharded by tenant
    /// sends the statement to one shard. Citus refuses a batch that locks rows of several shards, so record one batch
    /// per tenant there.
    ///
    /// Keep a batch below a few thousand keys. An empty batch sends nothing.
    ///
    /// ```
    /// # use api_keys_driver::{KeyUse, KeysDriver, Result, TenantId};
    /// # use chrono::{DateTime, Utc};
    /// # use diesel::PgConnection;
    /// # fn record(conn: &mut PgConnection, tenant_id: &TenantId, now: DateTime<Utc>) -> Result<()> {
    /// let once = |key_id: &str| KeyUse { tenant_id: tenant_id.clone(), key_id: key_id.into(), count: 1, at: now };
    /// let changed = KeysDriver::new(conn).record_key_uses(&[once("a"), once("b"), once("a")])?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn record_key_uses(&mut self, uses: &[KeyUse]) -> Result<i64> {
        let sums = Sums::of(uses);
        if sums.key_ids.is_empty() {
            return Ok(0);
        }
        Ok(row_count(UpdateKeyUses(sums).change(self.conn)?))
    }

    /// Records uses as [`record_key_uses`](Self::record_key_uses) does, but skips the keys that another transaction has
    /// locked. Returns the skipped uses without change.
    ///
    /// One statement locks the rows that are free, changes them, and reports the keys whose rows it could not lock. Uses
    /// of a key that the tenant does not have are dropped, as in [`record_key_uses`](Self::record_key_uses). If another
    /// transaction deletes the key, or moves it to another tenant, while the statement runs, its uses are returned;
    /// the next attempt drops them.
    ///
    /// The rows stay locked until the transaction ends; without a transaction, until the statement ends. A worker that
    /// queues uses keeps the returned ones for the next attempt:
    ///
    /// ```
    /// use api_keys_driver::{KeyUse, KeysDriver, Result};
    /// use diesel::PgConnection;
    ///
    /// /// Records the queued uses. Uses of locked keys stay queued. After an error, all uses stay queued.
    /// fn flush(conn: &mut PgConnection, queue: &mut Vec<KeyUse>) -> Result<()> {
    ///     *queue = KeysDriver::new(conn).try_record_key_uses(queue)?;
    ///     Ok(())
    /// }
    ///
    /// /// Records all queued uses before the worker ends, and waits for locked keys.
    /// fn flush_all(conn: &mut PgConnection, queue: &mut Vec<KeyUse>) -> Result<()> {
    ///     KeysDriver::new(conn).record_key_uses(queue)?;
    ///     queue.clear();
    ///     Ok(())
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # let at = "2026-01-01T00:00:00Z".parse().unwrap();
    /// # let mut queue = vec![KeyUse { tenant_id: "tenant".into(), key_id: "key".into(), count: 1, at }];
    /// # flush(&mut conn, &mut queue).unwrap();
    /// # assert!(queue.is_empty());
    /// # flush_all(&mut conn, &mut queue).unwrap();
    /// ```
    ///
    /// A use has no id. If the connection is lost while the method runs, the uses may or may not be recorded. If the
    /// caller sends them again, they may be counted twice; if it drops them, they may be lost. In a transaction,
    /// replace the queue only after the commit.
    ///
    /// # Errors
    ///
    /// [`Error::SerializationFailure`](crate::Error::SerializationFailure) under `REPEATABLE READ` and `SERIALIZABLE`,
    /// if another transaction changed a row after this transaction's snapshot.
    pub fn try_record_key_uses(&mut self, uses: &[KeyUse]) -> Result<Vec<KeyUse>> {
        let sums = Sums::of(uses);
        if sums.key_ids.is_empty() {
            return Ok(Vec::new());
        }
        let busy: Vec<(TenantId, KeyId)> = TryUpdateKeyUses(sums).change_all(self.conn)?;
        let busy: HashSet<(&str, &str)> =
            busy.iter().map(|(tenant_id, key_id)| (tenant_id.as_str(), key_id.as_str())).collect();
        let is_busy = |used: &&KeyUse| busy.contains(&(used.tenant_id.as_str(), used.key_id.as_str()));
        Ok(uses.iter().filter(is_busy).cloned().collect())
    }
}

/// The sum of the uses of each key, in the order of tenant and key.
struct Sums<'a> {
    tenant_ids: Vec<&'a str>,
    key_ids: Vec<&'a str>,
    counts: Vec<i64>,
    times: Vec<Time>,
}

impl<'a> Sums<'a> {
    /// Adds the uses up. It skips ids with a NUL byte, for which the server would refuse the whole batch.
    fn of(uses: &'a [KeyUse]) -> Self {
        let mut sums = BTreeMap::new();
        let is_possible =
            |used: &&KeyUse| ![used.tenant_id.as_str(), used.key_id.as_str()].concat().contains('\0');
        for used in uses.iter().filter(is_possible) {
            let (count, at) =
                sums.entry((used.tenant_id.as_str(), used.key_id.as_str())).or_insert((0, used.at));
            *count += i64::from(used.count);
            *at = used.at.max(*at);
        }
        let mut all = Self { tenant_ids: vec![], key_ids: vec![], counts: vec![], times: vec![] };
        for ((tenant_id, key_id), (count, at)) in sums {
            all.tenant_ids.push(tenant_id);
            all.key_ids.push(key_id);
            all.counts.push(count);
            all.times.push(at.into());
        }
        all
    }

    /// The tenant of all uses, if they have the same one.
    fn only_tenant(&self) -> Option<&&'a str> {
        let first = self.tenant_ids.first()?;
        self.tenant_ids.last().filter(|last| *last == first)
    }

    /// Pushes the tenant as a bind value if all uses have the same one, because a sharded server finds the shard only
    /// by a value. Otherwise pushes the column that holds the tenant of each use.
    fn push_tenant<'b>(&'b self, column: &str, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        if let Some(tenant_id) = self.only_tenant() {
            return out.push_bind_param::<Text, _>(tenant_id);
        }
        out.push_sql(column);
        Ok(())
    }

    /// Pushes `unnest(..) AS uses (..)`. The arrays are in subselects, where the planner does not count their
    /// elements. So the server keeps one plan for batches of any size.
    fn push_rows<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("unnest((SELECT ");
        out.push_bind_param::<Array<Text>, _>(&self.key_ids)?;
        out.push_sql("), (SELECT ");
        out.push_bind_param::<Array<BigInt>, _>(&self.counts)?;
        out.push_sql("), (SELECT ");
        out.push_bind_param::<Array<Timestamptz>, _>(&self.times)?;
        if self.only_tenant().is_some() {
            out.push_sql(r#")) AS "uses" ("key_id", "count", "at")"#);
        } else {
            out.push_sql("), (SELECT ");
            out.push_bind_param::<Array<Text>, _>(&self.tenant_ids)?;
            out.push_sql(r#")) AS "uses" ("key_id", "count", "at", "tenant_id")"#);
        }
        Ok(())
    }

    /// Pushes the join with the keys of the `uses`, and their lock in the order of tenant and key.
    fn push_lock<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            r#" JOIN "api_keys" ON "api_keys"."id" = "uses"."key_id" AND "api_keys"."tenant_id" = "#,
        );
        self.push_tenant(r#""uses"."tenant_id""#, out)?;
        out.push_sql(
            r#" ORDER BY "api_keys"."tenant_id", "api_keys"."id"
                 FOR NO KEY UPDATE OF "api_keys""#,
        );
        Ok(())
    }

    /// Pushes the `UPDATE` of the rows in `locked`.
    fn push_update<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            r#"UPDATE "api_keys"
               SET "total_requests" = CASE
                     WHEN "api_keys"."total_requests" > 9223372036854775807 - "locked"."count"
                     THEN 9223372036854775807
                     ELSE "api_keys"."total_requests" + "locked"."count"
                   END,
                   "last_used_at" = greatest("api_keys"."last_used_at", "locked"."at")
               FROM "locked"
               WHERE "api_keys"."id" = "locked"."id" AND "api_keys"."tenant_id" = "#,
        );
        self.push_tenant(r#""locked"."tenant_id""#, out)
    }
}

/// Written by hand, because Diesel has no `WITH`. Only an `UPDATE` with a `WITH` locks its rows in a chosen order.
struct UpdateKeyUses<'a>(Sums<'a>);

impl QueryFragment<Pg> for UpdateKeyUses<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            r#"WITH "locked" AS (
                 SELECT "api_keys"."tenant_id", "api_keys"."id", "uses"."count", "uses"."at"
                 FROM "#,
        );
        self.0.push_rows(&mut out)?;
        self.0.push_lock(&mut out)?;
        out.push_sql(") ");
        self.0.push_update(&mut out)
    }
}

/// Returns the keys that exist and could not be locked.
struct TryUpdateKeyUses<'a>(Sums<'a>);

impl QueryFragment<Pg> for TryUpdateKeyUses<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "uses" AS (SELECT "uses".* FROM "#);
        self.0.push_rows(&mut out)?;
        out.push_sql(
            r#"), "locked" AS (
                 SELECT "api_keys"."tenant_id", "api_keys"."id", "uses"."count", "uses"."at"
                 FROM "uses""#,
        );
        self.0.push_lock(&mut out)?;
        out.push_sql(r#" SKIP LOCKED), "recorded" AS ("#);
        self.0.push_update(&mut out)?;
        out.push_sql(
            // `LATERAL` fetches each key by its id. For a join, the planner would read all keys of the tenant.
            r#") SELECT "found"."tenant_id", "found"."id" FROM "uses" CROSS JOIN LATERAL (
                 SELECT "api_keys"."tenant_id", "api_keys"."id" FROM "api_keys"
                 WHERE "api_keys"."id" = "uses"."key_id" AND "api_keys"."tenant_id" = "#,
        );
        self.0.push_tenant(r#""uses"."tenant_id""#, &mut out)?;
        out.push_sql(
            // `NOT IN` uses a hash table. An anti join would compare each key with each locked key.
            r#" OFFSET 0) AS "found" WHERE ("found"."tenant_id", "found"."id")
                 NOT IN (SELECT "locked"."tenant_id", "locked"."id" FROM "locked")"#,
        );
        Ok(())
    }
}

impl Query for TryUpdateKeyUses<'_> {
    type SqlType = (Text, Text);
}

// The SQL text depends on whether the batch has one tenant or several, so Diesel caches the statement by its text.
impl QueryId for UpdateKeyUses<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl QueryId for TryUpdateKeyUses<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl RunQueryDsl<PgConnection> for UpdateKeyUses<'_> {}

impl RunQueryDsl<PgConnection> for TryUpdateKeyUses<'_> {}
