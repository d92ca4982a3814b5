PREPARE fetch_usage_drift (timestamp with time zone, timestamp with time zone, bigint) AS
WITH
"asked" AS (
  SELECT $1::timestamptz AS "since", $2::timestamptz AS "until", $3::bigint AS "limit"
),
"range" AS MATERIALIZED (
  SELECT
    greatest(
      date_bin('15 minutes', "since", timestamptz '2000-01-01 00:00:00+00'),
      (SELECT "deleted_to" FROM "usage_retention")
    ) AS "from",
    least(
      date_bin('15 minutes', "until", timestamptz '2000-01-01 00:00:00+00') + CASE
        WHEN "until" > date_bin('15 minutes', "until", timestamptz '2000-01-01 00:00:00+00') THEN interval '15 minutes'
        ELSE interval '0'
      END,
      (SELECT "counted_to" FROM "usage_progress" ORDER BY "generation" DESC LIMIT 1)
    ) AS "to"
  FROM "asked"
),
"days" AS MATERIALIZED (
  SELECT
    date_bin('1 day', "from", timestamptz '2000-01-01 00:00:00+00') AS "from",
    date_bin('1 day', "to", timestamptz '2000-01-01 00:00:00+00') + CASE
      WHEN "to" > date_bin('1 day', "to", timestamptz '2000-01-01 00:00:00+00') THEN interval '24 hours'
      ELSE interval '0'
    END AS "to"
  FROM "range"
),
"counted" AS MATERIALIZED (
  SELECT
    "tenant_id"::text AS "tenant_id",
    "api_key_id"::text AS "api_key_id",
    date_bin('15 minutes', "created_at", timestamptz '2000-01-01 00:00:00+00') AS "start",
    count(*) AS "calls",
    coalesce(
      sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity'),
      0
    ) AS "spend",
    count(*) FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls"
  FROM "proxy_calls"
  WHERE "created_at" >= (SELECT "from" FROM "range") AND "created_at" < (SELECT "to" FROM "range")
  GROUP BY 1, 2, 3
),
"told" AS MATERIALIZED (
  SELECT
    "tenant_id",
    "api_key_id",
    date_bin('15 minutes', "created_at", timestamptz '2000-01-01 00:00:00+00') AS "start",
    "calls",
    "spend",
    "nan_calls"
  FROM "usage_changes"
  WHERE "created_at" >= (SELECT "from" FROM "range") AND "created_at" < (SELECT "to" FROM "range")
),
"buckets" AS MATERIALIZED (
  SELECT "tenant_id", "api_key_id", "is_day", "start", "calls", "spend", "nan_calls"
  FROM "usage_key_buckets"
  WHERE "start" >= (SELECT "from" FROM "days") AND "start" < (SELECT "to" FROM "days")
  UNION ALL
  SELECT "tenant_id", NULL, "is_day", "start", "calls", "spend", "nan_calls"
  FROM "usage_tenant_buckets"
  WHERE "start" >= (SELECT "from" FROM "days") AND "start" < (SELECT "to" FROM "days")
)
SELECT
  "tenant_id",
  "api_key_id",
  "is_day",
  "start",
  sum("counted")::bigint,
  sum("calls")::bigint,
  sum("counted_spend"),
  sum("spend")
FROM (
  SELECT
    "tenant_id",
    "api_key_id",
    "is_day",
    "start",
    "calls" AS "counted",
    "spend" AS "counted_spend",
    "nan_calls" AS "counted_nan",
    0 AS "calls",
    0 AS "spend",
    0 AS "nan_calls"
  FROM "buckets"
  WHERE "is_day"
    OR "start" >= (SELECT "from" FROM "range") AND "start" < (SELECT "to" FROM "range")
  UNION ALL
  SELECT "tenant_id", "api_key_id", false, "start", "calls", "spend", "nan_calls", 0, 0, 0
  FROM "told"
  WHERE "api_key_id" IS NOT NULL
  UNION ALL
  SELECT "tenant_id", NULL, false, "start", "calls", "spend", "nan_calls", 0, 0, 0
  FROM "told"
  UNION ALL
  SELECT "tenant_id", "api_key_id", false, "start", 0, 0, 0, "calls", "spend", "nan_calls"
  FROM "counted"
  WHERE "api_key_id" IS NOT NULL
  UNION ALL
  SELECT "tenant_id", NULL, false, "start", 0, 0, 0, "calls", "spend", "nan_calls"
  FROM "counted"
  UNION ALL
  SELECT
    "tenant_id",
    "api_key_id",
    true,
    date_bin('1 day', "start", timestamptz '2000-01-01 00:00:00+00'),
    0,
    0,
    0,
    "calls",
    "spend",
    "nan_calls"
  FROM "buckets"
  WHERE NOT "is_day"
) AS "both"
GROUP BY 1, 2, 3, 4
HAVING
  sum("counted") <> sum("calls")
  OR sum("counted_spend") <> sum("spend")
  OR sum("counted_nan") <> sum("nan_calls")
ORDER BY "start", "tenant_id", "api_key_id", "is_day"
LIMIT (SELECT "limit" FROM "asked");

EXPLAIN EXECUTE fetch_usage_drift ('2026-01-01T00:00:00Z', '262142-12-31T23:59:59.999999999Z', '50');
