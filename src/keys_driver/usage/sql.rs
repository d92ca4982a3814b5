//! The parts that the statements about usage share. Each statement is in the file of its method.
//!
//! They are written by hand, because Diesel has no `LATERAL`. In each statement the planner knows neither end of a
//! range, and every table is joined to a materialized row. So the planner expects few rows, uses neither parallel
//! workers nor JIT compilation, and keeps one plan for all values.

/// The quarter hour or day, in UTC, that contains a time. With this origin no difference overflows.
macro_rules! start_of {
    ($length:literal, $time:literal) => {
        concat!("date_bin('", $length, "', ", $time, ", timestamptz '2000-01-01 00:00:00+00')")
    };
}

/// The progress of counting. `pending_from` leaves out merged changes, which may be dead rows in the index.
///
/// After a restore of a dump, `merged_below` may be an id of the other server that is higher than any id of this one.
/// Then no change is left out.
macro_rules! progress {
    () => {
        r#""progress" AS MATERIALIZED (
            SELECT "counted_to",
                   CASE WHEN "merged_below" > pg_snapshot_xmax(pg_current_snapshot())::text::bigint THEN 0
                        ELSE "merged_below" END AS "pending_from",
                   (SELECT "deleted_to" FROM "usage_retention") AS "deleted_to"
            FROM "usage_progress" ORDER BY "generation" DESC LIMIT 1
        )"#
    };
}

/// The sums of some calls. Costs that are not finite numbers (`NaN`) are counted apart.
///
/// Calls of a key are read from `ix_proxy_calls_key_usage` alone. Calls of a tenant must not be read from it, because
/// it is ordered by key, and PostgreSQL 18 would search it for each key of the tenant. `count(id)` prevents it, because
/// the index does not hold the ids. Older servers do not choose that index here, so only the tests on 18 show the
/// difference.
macro_rules! call_sums {
    (of_a_key) => {
        call_sums!("count(*)")
    };
    (of_a_tenant) => {
        call_sums!(r#"count("id")"#)
    };
    ($count:literal) => {
        concat!(
            $count,
            r#" AS "calls", sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity') AS "spend",
           "#,
            $count,
            r#" FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls""#
        )
    };
}

/// The sums of some buckets or changes.
macro_rules! bucket_sums {
    () => {
        r#"coalesce(sum("calls"), 0) AS "calls", coalesce(sum("spend"), 0) AS "spend", coalesce(sum("nan_calls"), 0) AS "nan_calls""#
    };
}

/// Splits each boundary into whole quarter hours up to `lower`, and a correction: the calls between `lower` and the
/// boundary. `lower` is the nearer end of the quarter hour that contains the boundary. `sign` says whether the calls of
/// the correction must be added or subtracted.
///
/// The boundaries are `boundaries` or `since` of `"asked"`.
macro_rules! edges {
    (boundaries) => {
        edges!(r#"unnest((SELECT "boundaries" FROM "asked")) WITH ORDINALITY AS "unnested" ("boundary", "nth")"#)
    };
    (since) => {
        edges!(r#"(SELECT "since" AS "boundary", 1 AS "nth" FROM "asked") AS "moment""#)
    };
    ($moments:literal) => {
        concat!(
            r#""quarters" AS MATERIALIZED (
                SELECT "progress".*, "nth", "boundary", "q0", "q0" + interval '15 minutes' AS "q1",
                       "q0" < "boundary" AND "boundary" < "deleted_to" AS "is_rounded",
                       "boundary" <= "q0" + interval '450 seconds' AS "is_nearer_q0"
                FROM "progress"
                CROSS JOIN "#,
            $moments,
            r#"
                CROSS JOIN LATERAL "#,
            start_of!("15 minutes", r#""boundary""#),
            r#" AS "q0"
            ), "edges" AS MATERIALIZED (
                SELECT "nth", "counted_to", "pending_from", "is_rounded",
                       CASE WHEN "boundary" >= "counted_to" THEN "boundary"
                            WHEN "is_rounded" OR "is_nearer_q0" THEN "q0" ELSE "q1" END AS "lower",
                       CASE WHEN "is_nearer_q0" THEN 1 ELSE -1 END AS "sign",
                       CASE WHEN "is_nearer_q0" THEN "q0" ELSE "boundary" END AS "edge_from",
                       CASE WHEN "is_rounded" OR "boundary" >= "counted_to" THEN timestamptz '-infinity'
                            WHEN "is_nearer_q0" THEN "boundary" ELSE least("q1", "counted_to") END AS "edge_to",
                       greatest("boundary", "counted_to") AS "tail"
                FROM "quarters"
            )"#
        )
    };
}

/// The edge of `"asked"."since"`, and the first whole day after it.
macro_rules! since_edge {
    () => {
        concat!(
            progress!(),
            ", ",
            edges!(since),
            r#", "days" AS MATERIALIZED (
                SELECT "edges".*, timestamptz 'infinity' AS "forever",
                       CASE WHEN "day" = "lower" THEN "lower" ELSE "day" + interval '24 hours' END AS "day_from"
                FROM "edges" CROSS JOIN LATERAL "#,
            start_of!("1 day", r#""lower""#),
            r#" AS "day"
            )"#
        )
    };
}

/// The usage of a scope since the edge: the number of calls, the cost (`NULL` if it is not a number), and whether the
/// start was rounded to a quarter hour.
macro_rules! since_columns {
    () => {
        r#"("quarters"."calls" + "whole"."calls" + "pending"."calls" + "tail_calls"."calls" - "sign" * "edge"."calls")::bigint,
           CASE WHEN "quarters"."nan_calls" + "whole"."nan_calls" + "pending"."nan_calls" + "tail_calls"."nan_calls" - "sign" * "edge"."nan_calls" = 0
                THEN "quarters"."spend" + "whole"."spend" + "pending"."spend" + coalesce("tail_calls"."spend", 0) - "sign" * coalesce("edge"."spend", 0) END,
           "is_rounded""#
    };
}

/// The sums that [`since_columns`] adds up, joined to `"days"`.
macro_rules! since_sums {
    ($whose:ident, $buckets:literal, $scope:literal) => {
        concat!(
            r#" CROSS JOIN LATERAL (SELECT "#, bucket_sums!(), r#" FROM ""#, $buckets, r#"" WHERE "#, $scope,
            r#" AND NOT "is_day" AND "start" >= "days"."lower" AND "start" < "days"."day_from") AS "quarters""#,
            r#" CROSS JOIN LATERAL (SELECT "#, bucket_sums!(), r#" FROM ""#, $buckets, r#"" WHERE "#, $scope,
            r#" AND "is_day" AND "start" >= "days"."day_from" AND "start" <= "days"."forever") AS "whole""#,
            r#" CROSS JOIN LATERAL (SELECT "#, bucket_sums!(), r#" FROM "usage_changes" WHERE "#, $scope,
            r#" AND "transaction_id" >= "days"."pending_from" AND "created_at" >= "days"."lower" AND "created_at" < "days"."counted_to") AS "pending""#,
            r#" CROSS JOIN LATERAL (SELECT "#, call_sums!($whose), r#" FROM "proxy_calls" WHERE "#, $scope,
            r#" AND "proxy_calls"."created_at" >= "days"."tail" AND "proxy_calls"."created_at" <= "days"."forever") AS "tail_calls""#,
            r#" CROSS JOIN LATERAL (SELECT "#, call_sums!($whose), r#" FROM "proxy_calls" WHERE "#, $scope,
            r#" AND "proxy_calls"."created_at" >= "days"."edge_from" AND "proxy_calls"."created_at" < "days"."edge_to") AS "edge""#,
        )
    };
}

/// Locks the newest row of `usage_progress`, which is the lock between workers. A worker whose snapshot has an older
/// row finds that row deleted, and does nothing.
///
/// A role that does not see all calls must not count them. The error is raised by the cast of a text that is not a
/// number.
macro_rules! lock_progress {
    ($columns:literal) => {
        concat!(
            r#""progress" AS MATERIALIZED (
                SELECT "#,
            $columns,
            r#", CASE WHEN row_security_active('proxy_calls'::regclass)
                        THEN concat('row-level security hides calls from this role: count as the owner of the tables, not in generation ', "generation")::bigint
                        ELSE "generation" END AS "generation"
                FROM "usage_progress"
                WHERE "generation" = (SELECT "generation" FROM "usage_progress" ORDER BY "generation" DESC LIMIT 1)
                FOR UPDATE SKIP LOCKED
            )"#
        )
    };
}

pub(super) use {
    bucket_sums, call_sums, edges, lock_progress, progress, since_columns, since_edge, since_sums, start_of,
};
