PREPARE delete_calls_before (timestamp with time zone, bigint) AS
WITH
"asked" AS (SELECT $1::timestamptz AS "moment", $2::bigint AS "limit"),
"bound" AS MATERIALIZED (
  SELECT
    date_bin(
      '15 minutes',
      least(
        "moment",
        (SELECT "counted_to" FROM "usage_progress" ORDER BY "generation" DESC LIMIT 1),
        to_timestamp(pg_sequence_last_value('usage_frontier'))
      ),
      timestamptz '2000-01-01 00:00:00+00'
    ) AS "to"
  FROM "asked"
),
"declared" AS (
  UPDATE "usage_retention" SET
    "deleted_to" = "to"
  FROM "bound"
  WHERE "deleted_to" < "to"
),
"doomed" AS MATERIALIZED (
  SELECT "id", "created_at"
  FROM "proxy_calls"
  WHERE "created_at" >= '-infinity' AND "created_at" < (SELECT "to" FROM "bound")
  ORDER BY "created_at"
  LIMIT (SELECT "limit" FROM "asked")
  FOR UPDATE SKIP LOCKED
),
"gone" AS (
  DELETE FROM "proxy_calls"
  USING "doomed"
  WHERE "proxy_calls"."id" = "doomed"."id" AND "proxy_calls"."created_at" = "doomed"."created_at"
  RETURNING
    "proxy_calls"."tenant_id",
    "proxy_calls"."api_key_id",
    "proxy_calls"."created_at",
    "proxy_calls"."cost_cents",
    pg_current_xact_id()::text::bigint AS "own"
),
"kept" AS (
  INSERT INTO
    "usage_changes" (
      "transaction_id",
      "tenant_id",
      "api_key_id",
      "created_at",
      "calls",
      "spend",
      "nan_calls"
    )
  SELECT
    greatest(
      "own",
      (SELECT "merged_below" FROM "usage_progress" ORDER BY "generation" DESC LIMIT 1)
    ),
    "tenant_id",
    "api_key_id",
    date_bin('15 minutes', "created_at", timestamptz '2000-01-01 00:00:00+00'),
    count(*),
    coalesce(
      sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity'),
      0
    ),
    count(*) FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity')
  FROM "gone"
  GROUP BY 1, 2, 3, 4
)
SELECT count(*)
FROM "gone";

EXPLAIN EXECUTE delete_calls_before ('2026-01-01T00:00:00Z', '50');
