//! The maintenance of usage: counts calls into buckets, and merges changes of counted calls.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel::sql_types::{BigInt, Bool, Timestamptz};

use super::sql::{lock_progress, start_of};
use crate::Result;
use crate::keys_driver::KeysDriver;
use crate::prepared::prepared;
use crate::send::RunStatement;
use crate::time::Time;

/// What a step of [`KeysDriver::roll_up_usage`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageRollUp {
    /// The time up to which calls are counted: all calls made before it are in the buckets.
    pub counted_to: DateTime<Utc>,
    /// The number of calls that this step counted.
    pub calls_counted: i64,
    /// The number of changes of earlier calls that this step merged, or dropped because it counted their calls.
    pub changes_merged: i64,
    /// Whether to call again at once. It is `false` if nothing is left to do, or if the rest must wait for open
    /// transactions.
    pub is_behind: bool,
}

#[derive(Queryable)]
struct Step {
    counted_to: Time,
    calls_counted: i64,
    changes_merged: i64,
    is_behind: bool,
}

impl KeysDriver<'_> {
    /// Does one step of the maintenance that makes usage cheap to read: it counts calls of all tenants that were made
    /// before `until`, and merges later changes of counted calls. Returns `None` if another worker is doing a step.
    ///
    /// A step counts about `limit` calls and merges about `limit` changes at most. Call it every few seconds from any
    /// number of workers, outside a transaction, until [`is_behind`](UsageRollUp::is_behind) is false. `until` is the
    /// caller's clock minus a few seconds, in which most late calls are committed. It never changes an answer: a call
    /// before `until` that is inserted, changed or deleted later is counted too, but its writer also writes a row to
    /// `usage_changes`.
    ///
    /// The first steps count the existing calls, oldest first. If no worker runs, answers are right, but the cost of a
    /// read grows with the calls. Calls are counted only after every transaction has ended that was open when `until`
    /// was announced. So an open transaction that has written anything, in any database of the server, delays the
    /// counting.
    ///
    /// A step blocks no reader and no writer, and another step at the same time returns `None`. At `REPEATABLE READ`
    /// and `SERIALIZABLE`, the other step may fail with
    /// [`Error::SerializationFailure`](crate::Error::SerializationFailure) instead. On a sharded server, each shard has
    /// its own progress: call it on each shard. A step reads calls through the existing service's index on `proxy_calls
    /// (created_at)`.
    ///
    /// ```
    /// use api_keys_driver::{KeysDriver, Result};
    /// use chrono::{DateTime, TimeDelta, Utc};
    /// use diesel::PgConnection;
    ///
    /// /// A worker calls this every few seconds.
    /// fn roll_up(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<()> {
    ///     let until = now - TimeDelta::seconds(10);
    ///     while KeysDriver::new(conn).roll_up_usage(until, 10_000)?.is_some_and(|step| step.is_behind) {}
    ///     Ok(())
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # roll_up(&mut database.connect().unwrap(), Utc::now()).unwrap();
    /// ```
    pub fn roll_up_usage(&mut self, until: DateTime<Utc>, limit: u32) -> Result<Option<UsageRollUp>> {
        let step: Option<Step> =
            RollUp { until: until.into(), limit: limit.max(1).into() }.change_optional(self.conn)?;
        Ok(step.map(|step| UsageRollUp {
            counted_to: step.counted_to.into(),
            calls_counted: step.calls_counted,
            changes_merged: step.changes_merged,
            is_behind: step.is_behind,
        }))
    }
}

/// One step, which continues where the last step of any worker stopped.
struct RollUp {
    limit: i64,
    until: Time,
}

impl QueryFragment<Pg> for RollUp {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "asked" AS MATERIALIZED (SELECT "#);
        out.push_bind_param::<BigInt, _>(&self.limit)?;
        out.push_sql(r#"::bigint AS "limit", least(greatest("#);
        out.push_bind_param::<Timestamptz, _>(&self.until)?;
        out.push_sql(STEP);
        Ok(())
    }
}

/// In the order of a step:
///
/// - Changes that this snapshot sees are merged. Changes of calls that this step counts are deleted instead, because the
///   snapshot sees those calls as they are after the changes.
/// - Calls are counted up to `announced_to` when every transaction below the barrier has ended, because then no
///   transaction can still write an earlier call without recording it.
/// - A new frontier is announced when all calls before the last one are counted. The barrier is taken by a later
///   transaction, whose snapshot is newer than the announcement.
/// - If the sequence was set back, for example by a switch-over that does not copy sequences, it is first raised again.
///
/// The stable expressions are in `RETURNING`, so that Citus refuses the statement: see `Recount`.
const STEP: &str = concat!(
    r#", timestamptz '4714-11-24 00:00:00+00 BC'), timestamptz '9999-12-31 00:00:00+00') AS "until"
    ), "#,
    lock_progress!(r#""merged_below", "counted_to", "announced_to", "announced_in", "barrier""#),
    r#", "seen" AS MATERIALIZED (
        SELECT "progress".*, "open", "unborn",
               CASE WHEN "merged_below" > "unborn" THEN 0 ELSE "merged_below" END AS "first",
               coalesce(to_timestamp(pg_sequence_last_value('usage_frontier')) < "announced_to", false) AS "is_set_back",
               "announced_in" <> pg_current_xact_id()::text::bigint AND ("barrier" IS NULL OR "barrier" > "unborn") AS "takes_barrier",
               coalesce("barrier" <= "open", false) AS "all_know"
        FROM "progress", (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS "open",
                                 pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS "unborn") AS "snapshot"
    ), "step" AS MATERIALIZED (
        SELECT "seen".*,
               (SELECT "transaction_id" FROM "usage_changes" WHERE "transaction_id" >= "first"
                ORDER BY "transaction_id" OFFSET (SELECT "limit" - 1 FROM "asked") LIMIT 1) AS "last",
               CASE WHEN "all_know" AND NOT "is_set_back" AND "counted_to" < "announced_to" THEN least("announced_to", coalesce(
                   (SELECT greatest("created_at" + interval '1 microsecond', '4714-11-24 00:00:00+00 BC') FROM "proxy_calls"
                    WHERE "created_at" >= "counted_to" AND "created_at" < "announced_to"
                    ORDER BY "created_at" OFFSET (SELECT "limit" - 1 FROM "asked") LIMIT 1), "announced_to"))
               ELSE "counted_to" END AS "next"
        FROM "seen"
    ), "gone" AS (
        DELETE FROM "usage_changes" USING "step"
        WHERE ("transaction_id" >= "first" AND "transaction_id" <= coalesce("last", 9223372036854775807))
           OR ("created_at" >= "counted_to" AND "created_at" < "next")
        RETURNING "usage_changes"."tenant_id", "usage_changes"."api_key_id", "usage_changes"."created_at",
                  "usage_changes"."calls", "usage_changes"."spend", "usage_changes"."nan_calls"
    ), "counted" AS MATERIALIZED (
        SELECT "tenant_id"::text AS "tenant_id", "api_key_id"::text AS "api_key_id", "#,
    start_of!("15 minutes", r#""created_at""#),
    r#" AS "quarter", count(*) AS "calls",
               coalesce(sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity'), 0) AS "spend",
               count(*) FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls"
        FROM "proxy_calls"
        WHERE "created_at" >= (SELECT "counted_to" FROM "step") AND "created_at" < (SELECT "next" FROM "step")
        GROUP BY 1, 2, 3
    ), "told" AS MATERIALIZED (
        SELECT "tenant_id", "api_key_id", "quarter", sum("calls") AS "calls", sum("spend") AS "spend", sum("nan_calls") AS "nan_calls"
        FROM (
            SELECT "tenant_id", "api_key_id", "#,
    start_of!("15 minutes", r#""created_at""#),
    r#" AS "quarter", "calls", "spend", "nan_calls"
            FROM "gone" WHERE "created_at" < (SELECT "counted_to" FROM "step")
            UNION ALL
            SELECT "tenant_id", "api_key_id", "quarter", "calls", "spend", "nan_calls" FROM "counted"
        ) AS "all"
        GROUP BY 1, 2, 3
    ), "starts" AS MATERIALIZED (
        SELECT "tenant_id", "api_key_id", "is_day", "start", sum("calls") AS "calls", sum("spend") AS "spend", sum("nan_calls") AS "nan_calls"
        FROM "told" CROSS JOIN LATERAL (VALUES (false, "quarter"), (true, "#,
    start_of!("1 day", r#""quarter""#),
    r#")) AS "both" ("is_day", "start")
        GROUP BY 1, 2, 3, 4
    ), "of_keys" AS (
        INSERT INTO "usage_key_buckets" AS "b" ("tenant_id", "api_key_id", "is_day", "start", "calls", "spend", "nan_calls")
        SELECT "tenant_id", "api_key_id", "is_day", "start", "calls", "spend", "nan_calls" FROM "starts" WHERE "api_key_id" IS NOT NULL ORDER BY "tenant_id", "api_key_id", "is_day", "start"
        ON CONFLICT ("tenant_id", "api_key_id", "is_day", "start") DO UPDATE
        SET "calls" = "b"."calls" + excluded."calls", "spend" = "b"."spend" + excluded."spend",
            "nan_calls" = "b"."nan_calls" + excluded."nan_calls"
    ), "of_tenants" AS (
        INSERT INTO "usage_tenant_buckets" AS "b" ("tenant_id", "is_day", "start", "calls", "spend", "nan_calls")
        SELECT "tenant_id", "is_day", "start", sum("calls"), sum("spend"), sum("nan_calls")
        FROM "starts" GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT ("tenant_id", "is_day", "start") DO UPDATE
        SET "calls" = "b"."calls" + excluded."calls", "spend" = "b"."spend" + excluded."spend",
            "nan_calls" = "b"."nan_calls" + excluded."nan_calls"
    ), "old" AS (
        DELETE FROM "usage_progress" USING "step" WHERE "usage_progress"."generation" = "step"."generation"
        RETURNING "step".*, "next" = "step"."announced_to" AND NOT "is_set_back"
            AND (SELECT "until" FROM "asked") >= "step"."announced_to" + interval '1 second' AS "announces"
    ), "new" AS (
        INSERT INTO "usage_progress" ("generation", "merged_below", "counted_to", "announced_to", "announced_in", "barrier")
        SELECT "generation" + 1, least("open", coalesce("last", "open")), "next",
               CASE WHEN "is_set_back" THEN to_timestamp(setval('usage_frontier', extract(epoch FROM "announced_to")::bigint))
                    WHEN "announces" THEN to_timestamp(setval('usage_frontier', floor(extract(epoch FROM (SELECT "until" FROM "asked")))::bigint))
                    ELSE "announced_to" END,
               CASE WHEN "is_set_back" OR "announces" THEN pg_current_xact_id()::text::bigint ELSE "announced_in" END,
               CASE WHEN "is_set_back" OR "announces" THEN NULL
                    WHEN "takes_barrier" THEN "unborn"
                    ELSE "barrier" END
        FROM "old"
    )
    SELECT "next", (SELECT coalesce(sum("calls"), 0)::bigint FROM "counted"), (SELECT count(*) FROM "gone"),
           "last" IS NOT NULL OR "is_set_back" OR "announces" OR ("next" < "announced_to" AND ("all_know" OR "takes_barrier"))
    FROM "old""#
);

prepared!(RollUp => (Timestamptz, BigInt, BigInt, Bool));
