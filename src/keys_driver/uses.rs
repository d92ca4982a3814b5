//! Recording uses of keys. What their calls add up to is in `usage.rs`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
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
    /// lost, and stays at the end of `bigint`; `last_used_at` moves forward or stays. Several uses of a key add up. A key that does not
    /// exist, or not in that tenant, changes nothing and is not counted. A use is no change of the key:
    /// it raises no revision and appends no event.
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
        if uses.is_empty() {
            return Ok(0);
        }
        let changed = UpdateKeyUses::adding_up(uses).change(self.conn)?;
        Ok(row_count(changed))
    }
}

/// By hand: Diesel has no `WITH`, and no other `UPDATE` locks its rows in a chosen order.
struct UpdateKeyUses<'a> {
    tenant_ids: Vec<&'a str>,
    key_ids: Vec<&'a str>,
    counts: Vec<i64>,
    times: Vec<Time>,
}

impl<'a> UpdateKeyUses<'a> {
    fn adding_up(uses: &'a [KeyUse]) -> Self {
        let mut sums = BTreeMap::new();
        for used in uses {
            let (count, at) =
                sums.entry((used.tenant_id.as_str(), used.key_id.as_str())).or_insert((0, used.at));
            *count += i64::from(used.count);
            *at = used.at.max(*at);
        }
        let mut update = Self { tenant_ids: vec![], key_ids: vec![], counts: vec![], times: vec![] };
        for ((tenant_id, key_id), (count, at)) in sums {
            update.tenant_ids.push(tenant_id);
            update.key_ids.push(key_id);
            update.counts.push(count);
            update.times.push(at.into());
        }
        update
    }

    /// The tenant of all uses, if it is one. They are in the order of their tenants.
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
}

impl QueryId for UpdateKeyUses<'_> {
    type QueryId = UpdateKeyUses<'static>;
    // A batch of one tenant is another statement than one of several. The text tells them apart.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl RunQueryDsl<PgConnection> for UpdateKeyUses<'_> {}

impl QueryFragment<Pg> for UpdateKeyUses<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            r#"WITH "locked" AS (
                 SELECT "api_keys"."tenant_id", "api_keys"."id", "uses"."count", "uses"."at"
                 FROM unnest((SELECT "#,
        );
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
        out.push_sql(
            r#" JOIN "api_keys" ON "api_keys"."id" = "uses"."key_id" AND "api_keys"."tenant_id" = "#,
        );
        self.push_tenant(r#""uses"."tenant_id""#, &mut out)?;
        out.push_sql(
            r#" ORDER BY "api_keys"."tenant_id", "api_keys"."id"
                 FOR NO KEY UPDATE OF "api_keys"
               )
               UPDATE "api_keys"
               SET "total_requests" = CASE
                     WHEN "api_keys"."total_requests" > 9223372036854775807 - "locked"."count"
                     THEN 9223372036854775807
                     ELSE "api_keys"."total_requests" + "locked"."count"
                   END,
                   "last_used_at" = greatest("api_keys"."last_used_at", "locked"."at")
               FROM "locked"
               WHERE "api_keys"."id" = "locked"."id" AND "api_keys"."tenant_id" = "#,
        );
        self.push_tenant(r#""locked"."tenant_id""#, &mut out)
    }
}
