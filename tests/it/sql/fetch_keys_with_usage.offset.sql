PREPARE fetch_keys_with_usage_offset (text, timestamp with time zone, text, text, bigint, bigint) AS
WITH
"asked" AS (SELECT $1::text AS "tenant_id", $2::timestamptz AS "since"),
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
  FROM
    "progress"
    CROSS JOIN (SELECT "since" AS "boundary", 1 AS "nth" FROM "asked") AS "moment"
    CROSS JOIN LATERAL date_bin('15 minutes', "boundary", timestamptz '2000-01-01 00:00:00+00') AS "q0"
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
"days" AS MATERIALIZED (
  SELECT
    "edges".*,
    timestamptz 'infinity' AS "forever",
    CASE WHEN "day" = "lower" THEN "lower" ELSE "day" + interval '24 hours' END AS "day_from"
  FROM
    "edges"
    CROSS JOIN LATERAL date_bin('1 day', "lower", timestamptz '2000-01-01 00:00:00+00') AS "day"
)
SELECT
  "api_keys"."id",
  "api_keys"."name",
  "api_keys"."key_prefix",
  "api_keys"."status",
  "api_keys"."is_frozen",
  "api_keys"."frozen_at",
  "api_keys"."created_at",
  "api_keys"."last_used_at",
  "api_keys"."expires_at",
  "api_keys"."total_requests",
  "api_keys"."is_synthetic",
  "api_keys"."revision",
  (
    "quarters"."calls" + "whole"."calls" + "pending"."calls" + "tail_calls"."calls" - "sign" * "edge"."calls"
  )::bigint,
  CASE
    WHEN "quarters"."nan_calls" + "whole"."nan_calls" + "pending"."nan_calls" + "tail_calls"."nan_calls" - "sign" * "edge"."nan_calls" = 0 THEN "quarters"."spend" + "whole"."spend" + "pending"."spend" + coalesce("tail_calls"."spend", 0) - "sign" * coalesce("edge"."spend", 0)
  END,
  "is_rounded"
FROM
  (
    SELECT
      "api_keys"."id",
      "api_keys"."name",
      "api_keys"."key_prefix",
      "api_keys"."status",
      "api_keys"."is_frozen",
      "api_keys"."frozen_at",
      "api_keys"."created_at",
      "api_keys"."last_used_at",
      "api_keys"."expires_at",
      "api_keys"."total_requests",
      "api_keys"."is_synthetic",
      "api_keys"."revision"
    FROM "api_keys"
    WHERE
      ("api_keys"."tenant_id" = $3)
      AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')
      AND ("api_keys"."created_at", "api_keys"."id") <= (
        SELECT "api_keys"."created_at", "api_keys"."id"
        FROM "api_keys"
        WHERE
          ("api_keys"."tenant_id" = $4)
          AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')
        ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC
        LIMIT 1 OFFSET (SELECT $5)
      )
    ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC
    LIMIT (SELECT $6)
  ) AS "api_keys"
  CROSS JOIN "days"
  CROSS JOIN LATERAL (
    SELECT
      coalesce(sum("calls"), 0) AS "calls",
      coalesce(sum("spend"), 0) AS "spend",
      coalesce(sum("nan_calls"), 0) AS "nan_calls"
    FROM "usage_key_buckets"
    WHERE
      "tenant_id" = $1
      AND "api_key_id" = "api_keys"."id"
      AND NOT "is_day"
      AND "start" >= "days"."lower"
      AND "start" < "days"."day_from"
  ) AS "quarters"
  CROSS JOIN LATERAL (
    SELECT
      coalesce(sum("calls"), 0) AS "calls",
      coalesce(sum("spend"), 0) AS "spend",
      coalesce(sum("nan_calls"), 0) AS "nan_calls"
    FROM "usage_key_buckets"
    WHERE
      "tenant_id" = $1
      AND "api_key_id" = "api_keys"."id"
      AND "is_day"
      AND "start" >= "days"."day_from"
      AND "start" <= "days"."forever"
  ) AS "whole"
  CROSS JOIN LATERAL (
    SELECT
      coalesce(sum("calls"), 0) AS "calls",
      coalesce(sum("spend"), 0) AS "spend",
      coalesce(sum("nan_calls"), 0) AS "nan_calls"
    FROM "usage_changes"
    WHERE
      "tenant_id" = $1
      AND "api_key_id" = "api_keys"."id"
      AND "transaction_id" >= "days"."pending_from"
      AND "created_at" >= "days"."lower"
      AND "created_at" < "days"."counted_to"
  ) AS "pending"
  CROSS JOIN LATERAL (
    SELECT
      count(*) AS "calls",
      sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity') AS "spend",
      count(*) FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls"
    FROM "proxy_calls"
    WHERE
      "tenant_id" = $1
      AND "api_key_id" = "api_keys"."id"
      AND "proxy_calls"."created_at" >= "days"."tail"
      AND "proxy_calls"."created_at" <= "days"."forever"
  ) AS "tail_calls"
  CROSS JOIN LATERAL (
    SELECT
      count(*) AS "calls",
      sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity') AS "spend",
      count(*) FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls"
    FROM "proxy_calls"
    WHERE
      "tenant_id" = $1
      AND "api_key_id" = "api_keys"."id"
      AND "proxy_calls"."created_at" >= "days"."edge_from"
      AND "proxy_calls"."created_at" < "days"."edge_to"
  ) AS "edge"
ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC;

EXPLAIN EXECUTE fetch_keys_with_usage_offset ('11111111-1111-1111-1111-111111111111', '2026-01-01T00:00:00Z', '11111111-1111-1111-1111-111111111111', '11111111-1111-1111-1111-111111111111', '1', '50');
