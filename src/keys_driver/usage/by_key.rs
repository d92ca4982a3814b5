//! The usage of all keys of a tenant.

use std::ops::Range;

use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel::sql_types::{BigInt, Bool, Nullable, Numeric, Text, Timestamptz};

use super::sql::{call_sums, edges, progress, start_of};
use super::{KeyUsageSnapshot, Sums};
use crate::keys_driver::KeysDriver;
use crate::prepared::prepared;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{KeyId, Result, TenantId};

impl KeysDriver<'_> {
    /// Fetches the usage of each key of a tenant within a range, for at most `limit` keys. The order is by cost and by
    /// number of calls, both descending, and then by id.
    ///
    /// The range is half-open. Deleted keys are included. Keys without a call in the range, and calls without a key,
    /// are not. The cost grows with the number of used keys and with the days of the range, and not with the calls.
    ///
    /// # Errors
    ///
    /// [`Error::CostNotANumber`](crate::Error::CostNotANumber) if the cost of a call in the range is `NaN`. It names
    /// the key.
    pub fn fetch_tenant_usage_by_key(
        &mut self,
        tenant_id: &TenantId,
        range: Range<DateTime<Utc>>,
        limit: u32,
    ) -> Result<Vec<(KeyId, KeyUsageSnapshot)>> {
        let (from, to) = (range.start.into(), range.end.max(range.start).into());
        let rows: Vec<(KeyId, i64, Option<BigDecimal>, bool)> =
            ByKey { tenant_id, from, to, limit: limit.into() }.read_all(self.conn)?;
        rows.into_iter()
            .map(|(key_id, calls, spend, is_rounded)| {
                let usage = Sums { calls, spend, is_rounded }.of_key(tenant_id, &key_id)?;
                Ok((key_id, usage))
            })
            .collect()
    }
}

/// Whole days are read from the index of days. For the first and the last day, the keys are found by their day buckets,
/// and their quarter hours are read by key.
struct ByKey<'a> {
    tenant_id: &'a TenantId,
    from: Time,
    to: Time,
    limit: i64,
}

impl QueryFragment<Pg> for ByKey<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "asked" AS (SELECT "#);
        out.push_bind_param::<Text, _>(self.tenant_id)?;
        out.push_sql(r#"::text AS "tenant_id", ARRAY["#);
        out.push_bind_param::<Timestamptz, _>(&self.from)?;
        out.push_sql("::timestamptz, ");
        out.push_bind_param::<Timestamptz, _>(&self.to)?;
        out.push_sql(r#"::timestamptz] AS "boundaries", "#);
        out.push_bind_param::<BigInt, _>(&self.limit)?;
        out.push_sql(concat!(
            r#"::bigint AS "limit"), "#,
            progress!(),
            ", ",
            edges!(boundaries),
            r#", "range" AS MATERIALIZED (
                SELECT "f"."counted_to", "f"."pending_from", "f"."lower", "t"."lower" AS "upper", "f"."tail", "t"."tail" AS "tail_to",
                       "f"."is_rounded" OR "t"."is_rounded" AS "is_rounded", "first"."day", "day_to",
                       CASE WHEN "first"."day" = "f"."lower" THEN "f"."lower" ELSE "first"."day" + interval '24 hours' END AS "day_from"
                FROM "edges" AS "f" JOIN "edges" AS "t" ON "f"."nth" = 1 AND "t"."nth" = 2
                CROSS JOIN LATERAL (SELECT "#,
            start_of!("1 day", r#""f"."lower""#),
            r#" AS "day") AS "first"
                CROSS JOIN LATERAL "#,
            start_of!("1 day", r#""t"."lower""#),
            r#" AS "day_to"
            ), "pieces" AS MATERIALIZED (
                SELECT "day", "lower" AS "piece_from", least("upper", "day_from") AS "piece_to" FROM "range"
                UNION ALL
                SELECT "day_to", greatest("day_to", "day_from"), "upper" FROM "range"
            )
            SELECT "api_key_id", sum("calls")::bigint, CASE WHEN sum("nan_calls") = 0 THEN sum("spend") END,
                   (SELECT "is_rounded" FROM "range")
            FROM (
                SELECT "api_key_id", "calls", "spend", "nan_calls"
                FROM "range" CROSS JOIN LATERAL (SELECT "api_key_id", "calls", "spend", "nan_calls" FROM "usage_key_buckets"
                    WHERE "tenant_id" = $1 AND "is_day" AND "start" >= "day_from" AND "start" < "day_to") AS "whole"
                UNION ALL
                SELECT "quarters".* FROM "pieces"
                CROSS JOIN LATERAL (SELECT "api_key_id" FROM "usage_key_buckets"
                    WHERE "tenant_id" = $1 AND "is_day" AND "start" = "day" AND "piece_from" < "piece_to") AS "used"
                CROSS JOIN LATERAL (SELECT "api_key_id", "calls", "spend", "nan_calls" FROM "usage_key_buckets" AS "b"
                    WHERE "tenant_id" = $1 AND "b"."api_key_id" = "used"."api_key_id" AND NOT "is_day"
                    AND "start" >= "piece_from" AND "start" < "piece_to") AS "quarters"
                UNION ALL
                SELECT "changes".* FROM "range" CROSS JOIN LATERAL (SELECT "api_key_id", "calls", "spend", "nan_calls" FROM "usage_changes"
                    WHERE "tenant_id" = $1 AND "transaction_id" >= "pending_from"
                    AND "created_at" >= "lower" AND "created_at" < least("upper", "counted_to")) AS "changes"
                UNION ALL
                SELECT "api_key_id", "calls", coalesce("spend", 0), "nan_calls"
                FROM "range" CROSS JOIN LATERAL (SELECT "api_key_id"::text, "#,
            call_sums!(of_a_tenant),
            r#" FROM "proxy_calls" WHERE "tenant_id" = $1
                    AND "created_at" >= "tail" AND "created_at" < "tail_to" GROUP BY 1) AS "tail_calls"
                UNION ALL
                SELECT "api_key_id", CASE "nth" WHEN 1 THEN -"sign" ELSE "sign" END * "calls",
                       CASE "nth" WHEN 1 THEN -"sign" ELSE "sign" END * coalesce("spend", 0),
                       CASE "nth" WHEN 1 THEN -"sign" ELSE "sign" END * "nan_calls"
                FROM "edges" CROSS JOIN LATERAL (SELECT "api_key_id"::text, "#,
            call_sums!(of_a_tenant),
            r#" FROM "proxy_calls" WHERE "tenant_id" = $1
                    AND "created_at" >= "edge_from" AND "created_at" < "edge_to" GROUP BY 1) AS "edge"
            ) AS "sums"
            WHERE "api_key_id" IS NOT NULL
            GROUP BY "api_key_id" HAVING sum("calls") <> 0
            ORDER BY sum("nan_calls") <> 0 DESC, sum("spend") DESC, sum("calls") DESC, "api_key_id"
            LIMIT (SELECT "limit" FROM "asked")"#
        ));
        Ok(())
    }
}

prepared!(ByKey<'_> => (Text, BigInt, Nullable<Numeric>, Bool));
