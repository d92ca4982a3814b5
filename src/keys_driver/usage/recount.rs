//! Finds sums that differ from their calls, and counts them again.

use std::ops::Range;

use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel::sql_types::{BigInt, Bool, Nullable, Numeric, Text, Timestamptz};

use super::sql::{lock_progress, start_of};
use crate::keys_driver::KeysDriver;
use crate::prepared::prepared;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{KeyId, Result, TenantId};

/// What a step of [`KeysDriver::recount_usage`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageRecount {
    /// The time up to which this step counted again, and from which the next step continues.
    pub recounted_to: DateTime<Utc>,
    /// The number of quarter hours of keys whose sums changed. Merging waiting changes also changes sums.
    pub sums_changed: i64,
    /// Whether counted calls after `recounted_to` remain to be counted again.
    pub is_behind: bool,
}

/// A quarter hour whose sums differ from its calls, or a day whose sums differ from those of its quarter hours.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageDrift {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The key; `None` for the sums of the whole tenant.
    pub key_id: Option<KeyId>,
    /// Whether this is a day in UTC. If not, it is a quarter hour.
    pub is_day: bool,
    /// When the quarter hour or the day begins.
    pub start: DateTime<Utc>,
    /// The number of calls according to the sums.
    pub counted_calls: i64,
    /// The number of calls in the table; of a day, the number according to the sums of its quarter hours.
    pub calls: i64,
    /// The cost of the calls in cents, according to the sums. `NaN` costs are left out here and in `spend_cents`.
    pub counted_spend_cents: BigDecimal,
    /// The cost of the calls in cents, according to the table; of a day, according to the sums of its quarter hours.
    pub spend_cents: BigDecimal,
}

impl KeysDriver<'_> {
    /// Counts the calls of all tenants again, from a time on. Returns `None` if another worker is counting.
    ///
    /// Call it after calls were written without the triggers: while these were disabled or `session_replication_role`
    /// was `replica`, by attaching, detaching or truncating a partition, or by a restore of the data alone. Until then
    /// the sums of such calls are wrong, and [`fetch_usage_drift`](Self::fetch_usage_drift) finds them.
    ///
    /// A call counts one UTC day, the first one from `from` on that has calls. It is exact while others write calls.
    /// Continue from [`recounted_to`](UsageRecount::recounted_to) while [`is_behind`](UsageRecount::is_behind) is true.
    /// The usage of calls that [`delete_calls_before`](Self::delete_calls_before) deleted cannot be counted again, and
    /// does not change.
    ///
    /// ```
    /// # use api_keys_driver::{KeysDriver, Result};
    /// # use chrono::{DateTime, Utc};
    /// # use diesel::PgConnection;
    /// fn recount(conn: &mut PgConnection, mut from: DateTime<Utc>) -> Result<()> {
    ///     loop {
    ///         match KeysDriver::new(conn).recount_usage(from)? {
    ///             Some(step) if step.is_behind => from = step.recounted_to,
    ///             Some(_) => return Ok(()),
    ///             None => std::thread::yield_now(),
    ///         }
    ///     }
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # recount(&mut database.connect().unwrap(), DateTime::UNIX_EPOCH).unwrap();
    /// ```
    pub fn recount_usage(&mut self, from: DateTime<Utc>) -> Result<Option<UsageRecount>> {
        let step: Option<(Time, i64, bool)> = Recount { from: from.into() }.change_optional(self.conn)?;
        Ok(step.map(|(recounted_to, sums_changed, is_behind)| UsageRecount {
            recounted_to: recounted_to.into(),
            sums_changed,
            is_behind,
        }))
    }

    /// Fetches the quarter hours of a range whose sums differ from their calls, and the days whose sums differ from
    /// those of their quarter hours, for all tenants, oldest first, at most `limit`. The answer is empty if the sums are
    /// right.
    ///
    /// It reads all counted calls of the range, so ask for a few days at a time. [`recount_usage`](Self::recount_usage)
    /// corrects the sums.
    pub fn fetch_usage_drift(&mut self, range: Range<DateTime<Utc>>, limit: u32) -> Result<Vec<UsageDrift>> {
        type Row = (String, Option<String>, bool, Time, i64, i64, BigDecimal, BigDecimal);

        let drift = Drift { from: range.start.into(), to: range.end.into(), limit: limit.into() };
        let rows: Vec<Row> = drift.read_all(self.conn)?;
        let drift = rows.into_iter().map(
            |(tenant_id, key_id, is_day, start, counted_calls, calls, counted_spend_cents, spend_cents)| {
                UsageDrift {
                    tenant_id: tenant_id.into(),
                    key_id: key_id.map(KeyId::from),
                    is_day,
                    start: start.into(),
                    counted_calls,
                    calls,
                    counted_spend_cents,
                    spend_cents,
                }
            },
        );
        Ok(drift.collect())
    }
}

/// Selects the calls of the range, grouped by key and quarter hour.
macro_rules! counted {
    () => {
        concat!(
            r#""counted" AS MATERIALIZED (
                SELECT "tenant_id"::text AS "tenant_id", "api_key_id"::text AS "api_key_id", "#,
            start_of!("15 minutes", r#""created_at""#),
            r#" AS "start", count(*) AS "calls",
                       coalesce(sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity'), 0) AS "spend",
                       count(*) FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls"
                FROM "proxy_calls"
                WHERE "created_at" >= (SELECT "from" FROM "range") AND "created_at" < (SELECT "to" FROM "range")
                GROUP BY 1, 2, 3
            )"#
        )
    };
}

/// Replaces wrong sums in buckets.
///
/// A quarter hour of the range gets the sum of its calls, or 0. A day gets the sum of its quarter hours.
macro_rules! rewrite {
    ($buckets:literal, $columns:literal, $calls:literal) => {
        concat!(
            r#"INSERT INTO ""#, $buckets, r#"" AS "b" ("#, $columns, r#", "is_day", "start", "calls", "spend", "nan_calls")
            SELECT "#, $columns, r#", "is_day", "start", sum("calls"), sum("spend"), sum("nan_calls")
            FROM (
                SELECT "#, $columns, r#", "is_day", "of"."start", "calls", "spend", "nan_calls"
                FROM "counted" AS "c" CROSS JOIN LATERAL (VALUES (false, "c"."start"), (true, "#,
            start_of!("1 day", r#""c"."start""#), r#")) AS "of" ("is_day", "start") WHERE "#, $calls, r#"
                UNION ALL
                SELECT "#, $columns, r#", "is_day", "start", 0, 0, 0
                FROM ""#, $buckets, r#"" WHERE "start" >= (SELECT "day" FROM "range") AND "start" < (SELECT "to" FROM "range")
                    AND ("is_day" OR "start" >= (SELECT "from" FROM "range"))
                UNION ALL
                SELECT "#, $columns, r#", true, (SELECT "day" FROM "range"), "calls", "spend", "nan_calls"
                FROM ""#, $buckets, r#"" WHERE NOT "is_day" AND "start" >= (SELECT "day" FROM "range") AND "start" < (SELECT "from" FROM "range")
            ) AS "all"
            GROUP BY "#, $columns, r#", "is_day", "start" ORDER BY "#, $columns, r#", "is_day", "start"
            ON CONFLICT ("#, $columns, r#", "is_day", "start") DO UPDATE
            SET "calls" = excluded."calls", "spend" = excluded."spend", "nan_calls" = excluded."nan_calls"
            WHERE ("b"."calls", "b"."spend", "b"."nan_calls") IS DISTINCT FROM (excluded."calls", excluded."spend", excluded."nan_calls")
            RETURNING "is_day""#
        )
    };
}

/// Citus must refuse this statement and the other statements of the maintenance, because it would run the parts one
/// after the other, each in its own snapshot. Citus refuses a statement with a volatile function in `RETURNING`.
struct Recount {
    from: Time,
}

impl QueryFragment<Pg> for Recount {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "asked" AS (SELECT "#);
        out.push_bind_param::<Timestamptz, _>(&self.from)?;
        out.push_sql(concat!(
            r#"::timestamptz AS "since"
            ), "#,
            lock_progress!(r#""counted_to""#),
            r#", "start" AS MATERIALIZED (
                SELECT "generation", "counted_to", least("counted_to", greatest("#,
            start_of!("15 minutes", r#""since""#),
            r#", (SELECT "deleted_to" FROM "usage_retention"))) AS "from"
                FROM "progress" CROSS JOIN "asked"
            ), "range" AS MATERIALIZED (
                SELECT "generation", "counted_to", "from", "#,
            start_of!("1 day", r#""from""#),
            r#" AS "day", least("counted_to", CASE WHEN "first" IS NOT NULL THEN greatest("#,
            start_of!("1 day", r#""first""#),
            r#" + interval '24 hours', '4714-11-25 00:00:00+00 BC') END) AS "to"
                FROM "start" CROSS JOIN LATERAL (SELECT (SELECT "created_at" FROM "proxy_calls"
                    WHERE "created_at" >= "from" AND "created_at" < "counted_to" ORDER BY "created_at" LIMIT 1) AS "first") AS "call"
            ), "#,
            counted!(),
            r#", "gone" AS (
                DELETE FROM "usage_changes" USING "range"
                WHERE "created_at" >= "range"."from" AND "created_at" < "range"."to"
            ), "of_keys" AS ("#,
            rewrite!("usage_key_buckets", r#""tenant_id", "api_key_id""#, r#""api_key_id" IS NOT NULL"#),
            r#"), "of_tenants" AS ("#,
            rewrite!("usage_tenant_buckets", r#""tenant_id""#, "true"),
            r#"), "locked" AS (
                UPDATE "usage_progress" SET "generation" = "usage_progress"."generation" + 1
                FROM "range" WHERE "usage_progress"."generation" = "range"."generation"
                RETURNING clock_timestamp()
            )
            SELECT "to", (SELECT count(*) FROM "of_keys" WHERE NOT "is_day"), "to" < "counted_to" FROM "range""#
        ));
        Ok(())
    }
}

struct Drift {
    from: Time,
    to: Time,
    limit: i64,
}

impl QueryFragment<Pg> for Drift {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "asked" AS (SELECT "#);
        out.push_bind_param::<Timestamptz, _>(&self.from)?;
        out.push_sql(r#"::timestamptz AS "since", "#);
        out.push_bind_param::<Timestamptz, _>(&self.to)?;
        out.push_sql(r#"::timestamptz AS "until", "#);
        out.push_bind_param::<BigInt, _>(&self.limit)?;
        out.push_sql(concat!(
            r#"::bigint AS "limit"
            ), "range" AS MATERIALIZED (
                SELECT greatest("#,
            start_of!("15 minutes", r#""since""#),
            r#", (SELECT "deleted_to" FROM "usage_retention")) AS "from",
                       least("#,
            start_of!("15 minutes", r#""until""#),
            r#" + CASE WHEN "until" > "#,
            start_of!("15 minutes", r#""until""#),
            r#" THEN interval '15 minutes' ELSE interval '0' END,
                           (SELECT "counted_to" FROM "usage_progress" ORDER BY "generation" DESC LIMIT 1)) AS "to"
                FROM "asked"
            ), "days" AS MATERIALIZED (
                SELECT "#,
            start_of!("1 day", r#""from""#),
            r#" AS "from", "#,
            start_of!("1 day", r#""to""#),
            r#" + CASE WHEN "to" > "#,
            start_of!("1 day", r#""to""#),
            r#" THEN interval '24 hours' ELSE interval '0' END AS "to"
                FROM "range"
            ), "#,
            counted!(),
            r#", "told" AS MATERIALIZED (
                SELECT "tenant_id", "api_key_id", "#,
            start_of!("15 minutes", r#""created_at""#),
            r#" AS "start", "calls", "spend", "nan_calls" FROM "usage_changes"
                WHERE "created_at" >= (SELECT "from" FROM "range") AND "created_at" < (SELECT "to" FROM "range")
            ), "buckets" AS MATERIALIZED (
                SELECT "tenant_id", "api_key_id", "is_day", "start", "calls", "spend", "nan_calls" FROM "usage_key_buckets"
                WHERE "start" >= (SELECT "from" FROM "days") AND "start" < (SELECT "to" FROM "days")
                UNION ALL
                SELECT "tenant_id", NULL, "is_day", "start", "calls", "spend", "nan_calls" FROM "usage_tenant_buckets"
                WHERE "start" >= (SELECT "from" FROM "days") AND "start" < (SELECT "to" FROM "days")
            )
            SELECT "tenant_id", "api_key_id", "is_day", "start",
                   sum("counted")::bigint, sum("calls")::bigint, sum("counted_spend"), sum("spend")
            FROM (
                SELECT "tenant_id", "api_key_id", "is_day", "start", "calls" AS "counted", "spend" AS "counted_spend", "nan_calls" AS "counted_nan",
                       0 AS "calls", 0 AS "spend", 0 AS "nan_calls"
                FROM "buckets" WHERE "is_day" OR "start" >= (SELECT "from" FROM "range") AND "start" < (SELECT "to" FROM "range")
                UNION ALL
                SELECT "tenant_id", "api_key_id", false, "start", "calls", "spend", "nan_calls", 0, 0, 0 FROM "told" WHERE "api_key_id" IS NOT NULL
                UNION ALL
                SELECT "tenant_id", NULL, false, "start", "calls", "spend", "nan_calls", 0, 0, 0 FROM "told"
                UNION ALL
                SELECT "tenant_id", "api_key_id", false, "start", 0, 0, 0, "calls", "spend", "nan_calls" FROM "counted" WHERE "api_key_id" IS NOT NULL
                UNION ALL
                SELECT "tenant_id", NULL, false, "start", 0, 0, 0, "calls", "spend", "nan_calls" FROM "counted"
                UNION ALL
                SELECT "tenant_id", "api_key_id", true, "#,
            start_of!("1 day", r#""start""#),
            r#", 0, 0, 0, "calls", "spend", "nan_calls" FROM "buckets" WHERE NOT "is_day"
            ) AS "both"
            GROUP BY 1, 2, 3, 4
            HAVING sum("counted") <> sum("calls") OR sum("counted_spend") <> sum("spend") OR sum("counted_nan") <> sum("nan_calls")
            ORDER BY "start", "tenant_id", "api_key_id", "is_day" LIMIT (SELECT "limit" FROM "asked")"#
        ));
        Ok(())
    }
}

prepared!(Recount => (Timestamptz, BigInt, Bool));

prepared!(Drift => (Text, Nullable<Text>, Bool, Timestamptz, BigInt, BigInt, Numeric, Numeric));
