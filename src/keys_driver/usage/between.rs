//! The usage of a key between any boundaries.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel::sql_types::{Array, Text, Timestamptz};

use super::sql::{bucket_sums, call_sums, edges, progress, start_of};
use super::{Bucket, KeyUsageSnapshot, SumTypes, Sums};
use crate::keys_driver::KeysDriver;
use crate::prepared::prepared;
use crate::send::RunStatement;
use crate::time::{Time, whole_micros};
use crate::{Error, KeyId, Result, TenantId};

impl KeysDriver<'_> {
    /// Returns the usage of a key between each two consecutive boundaries.
    ///
    /// The boundaries must ascend. Each range is half-open: a call at its first boundary counts, and a call at its
    /// second boundary does not. So the sums add up to the sum of the whole range. With fewer than two boundaries the
    /// answer is empty. The same calls count as in [`fetch_key_usage`](Self::fetch_key_usage).
    ///
    /// The caller computes the boundaries of days, months and billing periods with the time zone library of its choice,
    /// also of days with 23 or 25 hours. Boundaries on a quarter hour are the cheapest. Every time zone in use today
    /// begins its days on a quarter hour.
    ///
    /// # Errors
    ///
    /// Before anything is sent: [`Error::BoundariesNotAscending`], and [`Error::TooManyBuckets`] for more than
    /// [`Bucket::MAX_BUCKETS`] sums. [`Error::CostNotANumber`] if the cost of a call in the range is `NaN`.
    ///
    /// ```
    /// use api_keys_driver::{KeyId, KeyUsageSnapshot, KeysDriver, Result, TenantId};
    /// use chrono::{DateTime, FixedOffset, Utc};
    /// use diesel::PgConnection;
    ///
    /// /// The usage of two days in Berlin, of which the second has 23 hours.
    /// fn two_days(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Result<Vec<KeyUsageSnapshot>> {
    ///     let midnights = ["2026-03-28T00:00:00+01:00", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"];
    ///     let boundaries = midnights.map(|time| time.parse::<DateTime<FixedOffset>>().unwrap().to_utc());
    ///     KeysDriver::new(conn).fetch_key_usage_between(tenant_id, key_id, &boundaries)
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # assert_eq!(two_days(&mut conn, &"tenant".into(), &"key".into()).unwrap().len(), 2);
    /// ```
    pub fn fetch_key_usage_between(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        boundaries: &[DateTime<Utc>],
    ) -> Result<Vec<KeyUsageSnapshot>> {
        let boundaries: Vec<_> = boundaries.iter().copied().map(whole_micros).collect();
        if !boundaries.is_sorted() {
            return Err(Error::BoundariesNotAscending);
        }
        let sums = i64::try_from(boundaries.len()).unwrap_or(i64::MAX) - 1;
        if sums < 1 {
            return Ok(Vec::new());
        }
        if sums > Bucket::MAX_BUCKETS {
            return Err(Error::TooManyBuckets(sums));
        }
        let pairs = boundaries.len() - 1;
        let boundaries = boundaries.into_iter().map(Time::from).collect();
        let mut sums: Vec<Sums> = Between { tenant_id, key_id, boundaries }.read_all(self.conn)?;
        // For an id that no row can hold, no statement was sent.
        sums.resize_with(pairs, Sums::default);
        sums.into_iter().map(|sums| sums.of_key(tenant_id, key_id)).collect()
    }
}

/// Selects the sum for each two consecutive boundaries.
///
/// Each boundary is moved to the nearest quarter hour. The calls between the boundary and the quarter hour are a signed
/// correction, which is read once for the two sums next to the boundary. Changes that are not merged yet are read once
/// for all sums.
struct Between<'a> {
    tenant_id: &'a TenantId,
    key_id: &'a KeyId,
    boundaries: Vec<Time>,
}

macro_rules! sums_of_buckets {
    ($condition:literal, $name:literal) => {
        concat!(
            " CROSS JOIN LATERAL (SELECT ",
            bucket_sums!(),
            r#" FROM "usage_key_buckets" WHERE "tenant_id" = $1 AND "api_key_id" = $2 AND "#,
            $condition,
            r#") AS ""#,
            $name,
            r#"""#
        )
    };
}

impl QueryFragment<Pg> for Between<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "asked" AS (SELECT "#);
        out.push_bind_param::<Text, _>(self.tenant_id)?;
        out.push_sql(r#"::text AS "tenant_id", "#);
        out.push_bind_param::<Text, _>(self.key_id)?;
        out.push_sql(r#"::text AS "api_key_id", "#);
        out.push_bind_param::<Array<Timestamptz>, _>(&self.boundaries)?;
        out.push_sql(concat!(
            r#"::timestamptz[] AS "boundaries"), "#,
            progress!(),
            ", ",
            edges!(boundaries),
            r#", "corrected" AS MATERIALIZED (
                SELECT "edges".*, "sign" * "edge"."calls" AS "calls", "sign" * coalesce("edge"."spend", 0) AS "spend",
                       "sign" * "edge"."nan_calls" AS "nan_calls"
                FROM "edges" CROSS JOIN LATERAL (SELECT "#,
            call_sums!(of_a_key),
            r#" FROM "proxy_calls" WHERE "tenant_id" = $1 AND "api_key_id" = $2
                    AND "created_at" >= "edges"."edge_from" AND "created_at" < "edges"."edge_to") AS "edge"
            ), "pairs" AS MATERIALIZED (
                SELECT "nth", "lower", lead("lower") OVER "next" AS "upper", "tail", lead("tail") OVER "next" AS "tail_to",
                       lead("calls") OVER "next" - "calls" AS "calls", lead("spend") OVER "next" - "spend" AS "spend",
                       lead("nan_calls") OVER "next" - "nan_calls" AS "nan_calls",
                       "is_rounded" OR lead("is_rounded") OVER "next" AS "is_rounded"
                FROM "corrected" WINDOW "next" AS (ORDER BY "nth")
            ), "days" AS MATERIALIZED (
                SELECT "pairs".*, "day_from", "day_to", "day_from" < "day_to" AS "has_days"
                FROM "pairs"
                CROSS JOIN LATERAL "#,
            start_of!("1 day", r#""lower""#),
            r#" AS "day"
                CROSS JOIN LATERAL "#,
            start_of!("1 day", r#""upper""#),
            r#" AS "day_to"
                CROSS JOIN LATERAL (SELECT CASE WHEN "day" = "lower" THEN "lower" ELSE "day" + interval '24 hours' END AS "day_from") AS "first"
                WHERE "upper" IS NOT NULL
            ), "pending" AS MATERIALIZED (
                SELECT width_bucket("#,
            start_of!("15 minutes", r#""created_at""#),
            r#", "lowers") AS "nth", sum("calls") AS "calls", sum("spend") AS "spend", sum("nan_calls") AS "nan_calls"
                FROM (SELECT array_agg("lower" ORDER BY "nth") AS "lowers", min("lower") AS "first", max("lower") AS "last",
                             min("counted_to") AS "counted_to", min("pending_from") AS "pending_from" FROM "edges") AS "bounds"
                CROSS JOIN LATERAL (SELECT "created_at", "calls", "spend", "nan_calls" FROM "usage_changes"
                    WHERE "tenant_id" = $1 AND "api_key_id" = $2 AND "transaction_id" >= "bounds"."pending_from"
                    AND "created_at" >= "bounds"."first" AND "created_at" < least("bounds"."last", "bounds"."counted_to")) AS "changes"
                GROUP BY 1
            )
            SELECT sum("calls")::bigint, CASE WHEN sum("nan_calls") = 0 THEN sum("spend") END, bool_or("is_rounded")
            FROM (
                SELECT "nth", "days"."calls" + "quarters"."calls" + "whole"."calls" + "rest"."calls" + "tail_calls"."calls" AS "calls",
                       "days"."spend" + "quarters"."spend" + "whole"."spend" + "rest"."spend" + coalesce("tail_calls"."spend", 0) AS "spend",
                       "days"."nan_calls" + "quarters"."nan_calls" + "whole"."nan_calls" + "rest"."nan_calls" + "tail_calls"."nan_calls" AS "nan_calls",
                       "is_rounded"
                FROM "days""#,
            sums_of_buckets!(
                r#"NOT "is_day" AND "start" >= "days"."lower" AND "start" < CASE WHEN "has_days" THEN "days"."day_from" ELSE "days"."upper" END"#,
                "quarters"
            ),
            sums_of_buckets!(
                r#""is_day" AND "start" >= "days"."day_from" AND "start" < "days"."day_to""#,
                "whole"
            ),
            sums_of_buckets!(
                r#"NOT "is_day" AND "start" >= CASE WHEN "has_days" THEN "days"."day_to" ELSE "days"."upper" END AND "start" < "days"."upper""#,
                "rest"
            ),
            " CROSS JOIN LATERAL (SELECT ",
            call_sums!(of_a_key),
            r#" FROM "proxy_calls" WHERE "tenant_id" = $1 AND "api_key_id" = $2
                    AND "created_at" >= "days"."tail" AND "created_at" < "days"."tail_to") AS "tail_calls"
                UNION ALL
                SELECT "nth", "calls", "spend", "nan_calls", false FROM "pending"
            ) AS "sums"
            GROUP BY "nth" ORDER BY "nth""#
        ));
        Ok(())
    }
}

prepared!(Between<'_> => SumTypes);
