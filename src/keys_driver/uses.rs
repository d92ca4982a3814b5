//! Recording uses of keys. What their calls add up to is in `usage.rs`.

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

/// Uses of a key that are to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct KeyUse {
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// The key that was used.
    pub key_id: KeyId,
    /// How often it was used.
    pub count: u32,
    /// When it was used, or last used.
    pub at: DateTime<Utc>,
}

impl KeysDriver<'_> {
    /// Records uses of any number of keys in one statement, and returns how many keys it changed.
    ///
    /// `total_requests` grows by what is there when the row is written, so that no concurrent use is
    /// lost, and stays at the end of `bigint`; `last_used_at` moves forward or stays. Several uses of a key add
    /// up. A key that does not exist, or not in that tenant, changes nothing and is not counted. A use is no
    /// change of the key: it raises no revision and appends no event.
    ///
    /// One key that another transaction holds makes the whole batch wait: see
    /// [`try_record_key_uses`](Self::try_record_key_uses). No element makes the batch fail: a time beyond
    /// PostgreSQL's range is recorded as its end, and an id that no key can have is one that does not exist.
    ///
    /// The rows are locked in the order of tenant and key, until the transaction ends, so batches that
    /// overlap wait for each other and never deadlock, if a transaction records one batch and locks
    /// nothing before it. The batch may span tenants: each use carries its own. A batch of one tenant names
    /// it, so that a server that is sharded by tenant sends the statement to one shard; there, record a
    /// batch for each tenant, because Citus refuses one that locks rows of several shards.
    ///
    /// Keep a batch to some thousands of keys. An empty one sends nothing.
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

    /// Records uses as [`record_key_uses`](Self::record_key_uses) does, of the keys that nobody holds, without waiting
    /// for a row. Returns the uses of the others, as they were given.
    ///
    /// One statement locks the rows that are free, changes them, and says which keys it found and could not lock. Each
    /// use is either recorded or handed back. A key that does not exist, or not in that tenant, is neither: its uses
    /// are dropped, as by [`record_key_uses`](Self::record_key_uses). One that is deleted, or handed to another tenant,
    /// by a transaction that commits while the statement runs is handed back once more, and dropped the next time.
    ///
    /// The rows stay locked until the transaction ends; outside one, that is the end of the statement. One that
    /// flushes between other work loses nothing if it keeps what is handed back:
    ///
    /// ```
    /// use api_keys_driver::{KeyUse, KeysDriver, Result};
    /// use diesel::PgConnection;
    ///
    /// /// Records what is queued. What is busy stays queued; if the call fails, all of it does.
    /// fn flush(conn: &mut PgConnection, queue: &mut Vec<KeyUse>) -> Result<()> {
    ///     *queue = KeysDriver::new(conn).try_record_key_uses(queue)?;
    ///     Ok(())
    /// }
    ///
    /// /// Records the rest before the worker ends, and waits for it.
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
    /// A use has no id. When the connection is lost during the call, it may have been recorded: to queue it again
    /// may count it twice, and to drop it may lose it. In a transaction, replace the queue after the commit.
    ///
    /// # Errors
    ///
    /// Under `REPEATABLE READ` and above, a row that was changed since the transaction's snapshot is
    /// [`Error::SerializationFailure`](crate::Error::SerializationFailure).
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

/// The uses of each key added up, in the order of tenant and key.
struct Sums<'a> {
    tenant_ids: Vec<&'a str>,
    key_ids: Vec<&'a str>,
    counts: Vec<i64>,
    times: Vec<Time>,
}

impl<'a> Sums<'a> {
    /// Leaves out the ids that no key can have, for which the server would refuse the whole batch.
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

    /// The tenant of all uses, if it is one.
    fn only_tenant(&self) -> Option<&&'a str> {
        let first = self.tenant_ids.first()?;
        self.tenant_ids.last().filter(|last| *last == first)
    }

    /// Pushes the only tenant as a value, because only that tells a sharded server the shard, or the column that
    /// has the tenant of each use.
    fn push_tenant<'b>(&'b self, column: &str, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        if let Some(tenant_id) = self.only_tenant() {
            return out.push_bind_param::<Text, _>(tenant_id);
        }
        out.push_sql(column);
        Ok(())
    }

    /// Pushes `unnest(..) AS uses (..)`. The arrays stand in subselects, where the planner does not count their
    /// elements, so that one plan is kept for batches of any size.
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

    /// Pushes the keys that the `uses` are of, locked in the order of tenant and key.
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

    /// Pushes the change of the rows in `locked`.
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

/// By hand: Diesel has no `WITH`, and no other `UPDATE` locks its rows in a chosen order.
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

/// Answers with the keys that are there and were not locked.
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
            // One key at a time, where a join would read every key of an average tenant.
            r#") SELECT "found"."tenant_id", "found"."id" FROM "uses" CROSS JOIN LATERAL (
                 SELECT "api_keys"."tenant_id", "api_keys"."id" FROM "api_keys"
                 WHERE "api_keys"."id" = "uses"."key_id" AND "api_keys"."tenant_id" = "#,
        );
        self.0.push_tenant(r#""uses"."tenant_id""#, &mut out)?;
        out.push_sql(
            // Hashed, where an anti join of these would compare each with each.
            r#" OFFSET 0) AS "found" WHERE ("found"."tenant_id", "found"."id")
                 NOT IN (SELECT "locked"."tenant_id", "locked"."id" FROM "locked")"#,
        );
        Ok(())
    }
}

impl Query for TryUpdateKeyUses<'_> {
    type SqlType = (Text, Text);
}

// A batch of one tenant is another statement than one of several. The text tells them apart.
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
