PREPARE fetch_tenant_usage_by_key (text, timestamp with time zone, timestamp with time zone, bigint) AS
WITH
"asked" AS (
  SELECT
    $1::text AS "tenant_id",
    ARRAY[$2::timestamptz, $3::timestamptz] AS "boundaries",
    $4::bigint AS "limit"
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
"range" AS MATERIALIZED (
  SELECT
    "f"."counted_to",
    "f"."pending_from",
    "f"."lower",
    "t"."lower" AS "upper",
    "f"."tail",
    "t"."tail" AS "tail_to",
    "f"."is_rounded"
    OR "t"."is_rounded" AS "is_rounded",
    "first"."day",
    "day_to",
    CASE
      WHEN "first"."day" = "f"."lower" THEN "f"."lower"
      ELSE "first"."day" + interval '24 hours'
    END AS "day_from"
  FROM
    "edges" AS "f"
    JOIN "edges" AS "t" ON "f"."nth" = 1
    AND "t"."nth" = 2
    CROSS JOIN LATERAL (
      SELECT date_bin('1 day', "f"."lower", timestamptz '2000-01-01 00:00:00+00') AS "day"
    ) AS "first"
    CROSS JOIN LATERAL date_bin('1 day', "t"."lower", timestamptz '2000-01-01 00:00:00+00') AS "day_to"
),
"pieces" AS MATERIALIZED (
  SELECT "day", "lower" AS "piece_from", least("upper", "day_from") AS "piece_to"
  FROM "range"
  UNION ALL
  SELECT "day_to", greatest("day_to", "day_from"), "upper"
  FROM "range"
)
SELECT
  "api_key_id",
  sum("calls")::bigint,
  CASE WHEN sum("nan_calls") = 0 THEN sum("spend") END,
  (SELECT "is_rounded" FROM "range")
FROM (
  SELECT "api_key_id", "calls", "spend", "nan_calls"
  FROM
    "range"
    CROSS JOIN LATERAL (
      SELECT "api_key_id", "calls", "spend", "nan_calls"
      FROM "usage_key_buckets"
      WHERE "tenant_id" = $1
        AND "is_day" AND "start" >= "day_from" AND "start" < "day_to"
    ) AS "whole"
  UNION ALL
  SELECT "quarters".*
  FROM
    "pieces"
    CROSS JOIN LATERAL (
      SELECT "api_key_id"
      FROM "usage_key_buckets"
      WHERE "tenant_id" = $1
        AND "is_day" AND "start" = "day" AND "piece_from" < "piece_to"
    ) AS "used"
    CROSS JOIN LATERAL (
      SELECT "api_key_id", "calls", "spend", "nan_calls"
      FROM "usage_key_buckets" AS "b"
      WHERE
        "tenant_id" = $1
        AND "b"."api_key_id" = "used"."api_key_id"
        AND NOT "is_day"
        AND "start" >= "piece_from"
        AND "start" < "piece_to"
    ) AS "quarters"
  UNION ALL
  SELECT "changes".*
  FROM
    "range"
    CROSS JOIN LATERAL (
      SELECT "api_key_id", "calls", "spend", "nan_calls"
      FROM "usage_changes"
      WHERE
        "tenant_id" = $1
        AND "transaction_id" >= "pending_from"
        AND "created_at" >= "lower"
        AND "created_at" < least("upper", "counted_to")
    ) AS "changes"
  UNION ALL
  SELECT "api_key_id", "calls", coalesce("spend", 0), "nan_calls"
  FROM
    "range"
    CROSS JOIN LATERAL (
      SELECT
        "api_key_id"::text,
        count("id") AS "calls",
        sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity') AS "spend",
        count("id") FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls"
      FROM "proxy_calls"
      WHERE "tenant_id" = $1
        AND "created_at" >= "tail" AND "created_at" < "tail_to"
      GROUP BY 1
    ) AS "tail_calls"
  UNION ALL
  SELECT
    "api_key_id",
    CASE "nth" WHEN 1 THEN - "sign" ELSE "sign" END * "calls",
    CASE "nth" WHEN 1 THEN - "sign" ELSE "sign" END * coalesce("spend", 0),
    CASE "nth" WHEN 1 THEN - "sign" ELSE "sign" END * "nan_calls"
  FROM
    "edges"
    CROSS JOIN LATERAL (
      SELECT
        "api_key_id"::text,
        count("id") AS "calls",
        sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity') AS "spend",
        count("id") FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls"
      FROM "proxy_calls"
      WHERE "tenant_id" = $1
        AND "created_at" >= "edge_from" AND "created_at" < "edge_to"
      GROUP BY 1
    ) AS "edge"
) AS "sums"
WHERE "api_key_id" IS NOT NULL
GROUP BY "api_key_id"
HAVING sum("calls") <> 0
ORDER BY sum("nan_calls") <> 0 DESC, sum("spend") DESC, sum("calls") DESC, "api_key_id"
LIMIT (SELECT "limit" FROM "asked");

EXPLAIN EXECUTE fetch_tenant_usage_by_key ('11111111-1111-1111-1111-111111111111', '2026-01-01T00:00:00Z', '2026-02-10T00:00:00Z', '50');
