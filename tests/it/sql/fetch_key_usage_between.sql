PREPARE fetch_key_usage_between (text, text, timestamp with time zone[]) AS
WITH
"asked" AS (
  SELECT $1::text AS "tenant_id", $2::text AS "api_key_id", $3::timestamptz[] AS "boundaries"
),
"progress" AS MATERIALIZED (
  SELECT
    "counted_to",
    CASE
      WHEN "merged_below" > pg_snapshot_xmax(pg_current_snapshot())::text::bigint THEN 0
      ELSE "merged_below"
    END AS "pending_from",
    (SELECT "deleted_to" FROM "usage_retention") AS "deleted_to"
  FROM "usage_progress"
  ORDER BY "generation" DESC
  LIMIT 1
),
"quarters" AS MATERIALIZED (
  SELECT
    "progress".*,
    "nth",
    "boundary",
    "q0",
    "q0" + interval '15 minutes' AS "q1",
    "q0" < "boundary"
    AND "boundary" < "deleted_to" AS "is_rounded",
    "boundary" <= "q0" + interval '450 seconds' AS "is_nearer_q0"
  FROM "progress" CROSS JOIN unnest((SELECT "boundaries" FROM "asked"))
  WITH
  ORDINALITY AS "unnested" ("boundary", "nth") CROSS JOIN LATERAL date_bin('15 minutes', "boundary", timestamptz '2000-01-01 00:00:00+00') AS "q0"
),
"edges" AS MATERIALIZED (
  SELECT
    "nth",
    "counted_to",
    "pending_from",
    "is_rounded",
    CASE
      WHEN "boundary" >= "counted_to" THEN "boundary"
      WHEN "is_rounded"
      OR "is_nearer_q0" THEN "q0"
      ELSE "q1"
    END AS "lower",
    CASE WHEN "is_nearer_q0" THEN 1 ELSE -1 END AS "sign",
    CASE WHEN "is_nearer_q0" THEN "q0" ELSE "boundary" END AS "edge_from",
    CASE
      WHEN "is_rounded"
      OR "boundary" >= "counted_to" THEN timestamptz '-infinity'
      WHEN "is_nearer_q0" THEN "boundary"
      ELSE least("q1", "counted_to")
    END AS "edge_to",
    greatest("boundary", "counted_to") AS "tail"
  FROM "quarters"
),
"corrected" AS MATERIALIZED (
  SELECT
    "edges".*,
    "sign" * "edge"."calls" AS "calls",
    "sign" * coalesce("edge"."spend", 0) AS "spend",
    "sign" * "edge"."nan_calls" AS "nan_calls"
  FROM
    "edges"
    CROSS JOIN LATERAL (
      SELECT
        count(*) AS "calls",
        sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity') AS "spend",
        count(*) FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls"
      FROM "proxy_calls"
      WHERE
        "tenant_id" = $1
        AND "api_key_id" = $2
        AND "created_at" >= "edges"."edge_from"
        AND "created_at" < "edges"."edge_to"
    ) AS "edge"
),
"pairs" AS MATERIALIZED (
  SELECT
    "nth",
    "lower",
    lead("lower") OVER "next" AS "upper",
    "tail",
    lead("tail") OVER "next" AS "tail_to",
    lead("calls") OVER "next" - "calls" AS "calls",
    lead("spend") OVER "next" - "spend" AS "spend",
    lead("nan_calls") OVER "next" - "nan_calls" AS "nan_calls",
    "is_rounded"
    OR lead("is_rounded") OVER "next" AS "is_rounded"
  FROM "corrected"
  WINDOW "next" AS (ORDER BY "nth")
),
"days" AS MATERIALIZED (
  SELECT "pairs".*, "day_from", "day_to", "day_from" < "day_to" AS "has_days"
  FROM
    "pairs"
    CROSS JOIN LATERAL date_bin('1 day', "lower", timestamptz '2000-01-01 00:00:00+00') AS "day"
    CROSS JOIN LATERAL date_bin('1 day', "upper", timestamptz '2000-01-01 00:00:00+00') AS "day_to"
    CROSS JOIN LATERAL (
      SELECT CASE WHEN "day" = "lower" THEN "lower" ELSE "day" + interval '24 hours' END AS "day_from"
    ) AS "first"
  WHERE "upper" IS NOT NULL
),
"pending" AS MATERIALIZED (
  SELECT
    width_bucket(
      date_bin('15 minutes', "created_at", timestamptz '2000-01-01 00:00:00+00'),
      "lowers"
    ) AS "nth",
    sum("calls") AS "calls",
    sum("spend") AS "spend",
    sum("nan_calls") AS "nan_calls"
  FROM (
    SELECT
      array_agg("lower" ORDER BY "nth") AS "lowers",
      min("lower") AS "first",
      max("lower") AS "last",
      min("counted_to") AS "counted_to",
      min("pending_from") AS "pending_from"
    FROM "edges"
  ) AS "bounds"
    CROSS JOIN LATERAL (
      SELECT "created_at", "calls", "spend", "nan_calls"
      FROM "usage_changes"
      WHERE
        "tenant_id" = $1
        AND "api_key_id" = $2
        AND "transaction_id" >= "bounds"."pending_from"
        AND "created_at" >= "bounds"."first"
        AND "created_at" < least("bounds"."last", "bounds"."counted_to")
    ) AS "changes"
  GROUP BY 1
)
SELECT sum("calls")::bigint, CASE WHEN sum("nan_calls") = 0 THEN sum("spend") END, bool_or("is_rounded")
FROM (
  SELECT
    "nth",
    "days"."calls" + "quarters"."calls" + "whole"."calls" + "rest"."calls" + "tail_calls"."calls" AS "calls",
    "days"."spend" + "quarters"."spend" + "whole"."spend" + "rest"."spend" + coalesce("tail_calls"."spend", 0) AS "spend",
    "days"."nan_calls" + "quarters"."nan_calls" + "whole"."nan_calls" + "rest"."nan_calls" + "tail_calls"."nan_calls" AS "nan_calls",
    "is_rounded"
  FROM
    "days"
    CROSS JOIN LATERAL (
      SELECT
        coalesce(sum("calls"), 0) AS "calls",
        coalesce(sum("spend"), 0) AS "spend",
        coalesce(sum("nan_calls"), 0) AS "nan_calls"
      FROM "usage_key_buckets"
      WHERE
        "tenant_id" = $1
        AND "api_key_id" = $2
        AND NOT "is_day"
        AND "start" >= "days"."lower"
        AND "start" < CASE WHEN "has_days" THEN "days"."day_from" ELSE "days"."upper" END
    ) AS "quarters"
    CROSS JOIN LATERAL (
      SELECT
        coalesce(sum("calls"), 0) AS "calls",
        coalesce(sum("spend"), 0) AS "spend",
        coalesce(sum("nan_calls"), 0) AS "nan_calls"
      FROM "usage_key_buckets"
      WHERE
        "tenant_id" = $1
        AND "api_key_id" = $2
        AND "is_day"
        AND "start" >= "days"."day_from"
        AND "start" < "days"."day_to"
    ) AS "whole"
    CROSS JOIN LATERAL (
      SELECT
        coalesce(sum("calls"), 0) AS "calls",
        coalesce(sum("spend"), 0) AS "spend",
        coalesce(sum("nan_calls"), 0) AS "nan_calls"
      FROM "usage_key_buckets"
      WHERE
        "tenant_id" = $1
        AND "api_key_id" = $2
        AND NOT "is_day"
        AND "start" >= CASE WHEN "has_days" THEN "days"."day_to" ELSE "days"."upper" END
        AND "start" < "days"."upper"
    ) AS "rest"
    CROSS JOIN LATERAL (
      SELECT
        count(*) AS "calls",
        sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity') AS "spend",
        count(*) FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls"
      FROM "proxy_calls"
      WHERE
        "tenant_id" = $1
        AND "api_key_id" = $2
        AND "created_at" >= "days"."tail"
        AND "created_at" < "days"."tail_to"
    ) AS "tail_calls"
  UNION ALL
  SELECT "nth", "calls", "spend", "nan_calls", false
  FROM "pending"
) AS "sums"
GROUP BY "nth"
ORDER BY "nth";

EXPLAIN EXECUTE fetch_key_usage_between ('11111111-1111-1111-1111-111111111111', 'key', '{"2026-01-01T00:00:00Z","2026-01-01T00:20:00Z","2026-02-10T00:00:00Z"}');
