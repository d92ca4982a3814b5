PREPARE roll_up_usage (bigint, timestamp with time zone) AS
WITH
"asked" AS MATERIALIZED (
  SELECT
    $1::bigint AS "limit",
    least(
      greatest($2, timestamptz '4714-11-24 00:00:00+00 BC'),
      timestamptz '9999-12-31 00:00:00+00'
    ) AS "until"
),
"progress" AS MATERIALIZED (
  SELECT
    "merged_below",
    "counted_to",
    "announced_to",
    "announced_in",
    "barrier",
    CASE
      WHEN row_security_active('proxy_calls'::regclass) THEN concat(
        'row-level security hides calls from this role: count as the owner of the tables, not in generation ',
        "generation"
      )::bigint
      ELSE "generation"
    END AS "generation"
  FROM "usage_progress"
  WHERE "generation" = (SELECT "generation" FROM "usage_progress" ORDER BY "generation" DESC LIMIT 1)
  FOR UPDATE SKIP LOCKED
),
"seen" AS MATERIALIZED (
  SELECT
    "progress".*,
    "open",
    "unborn",
    CASE WHEN "merged_below" > "unborn" THEN 0 ELSE "merged_below" END AS "first",
    coalesce(to_timestamp(pg_sequence_last_value('usage_frontier')) < "announced_to", false) AS "is_set_back",
    "announced_in" <> pg_current_xact_id()::text::bigint
    AND ("barrier" IS NULL OR "barrier" > "unborn") AS "takes_barrier",
    coalesce("barrier" <= "open", false) AS "all_know"
  FROM
    "progress",
    (
      SELECT
        pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS "open",
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS "unborn"
    ) AS "snapshot"
),
"step" AS MATERIALIZED (
  SELECT
    "seen".*,
    (
      SELECT "transaction_id"
      FROM "usage_changes"
      WHERE "transaction_id" >= "first"
      ORDER BY "transaction_id" OFFSET (SELECT "limit" - 1 FROM "asked")
      LIMIT 1
    ) AS "last",
    CASE
      WHEN "all_know"
      AND NOT "is_set_back"
      AND "counted_to" < "announced_to" THEN least(
        "announced_to",
        coalesce(
          (
            SELECT greatest("created_at" + interval '1 microsecond', '4714-11-24 00:00:00+00 BC')
            FROM "proxy_calls"
            WHERE "created_at" >= "counted_to"
              AND "created_at" < "announced_to"
            ORDER BY "created_at" OFFSET (SELECT "limit" - 1 FROM "asked")
            LIMIT 1
          ),
          "announced_to"
        )
      )
      ELSE "counted_to"
    END AS "next"
  FROM "seen"
),
"gone" AS (
  DELETE FROM "usage_changes"
  USING "step"
  WHERE (
    "transaction_id" >= "first"
    AND "transaction_id" <= coalesce("last", 9223372036854775807)
  )
    OR ("created_at" >= "counted_to" AND "created_at" < "next")
  RETURNING
    "usage_changes"."tenant_id",
    "usage_changes"."api_key_id",
    "usage_changes"."created_at",
    "usage_changes"."calls",
    "usage_changes"."spend",
    "usage_changes"."nan_calls"
),
"counted" AS MATERIALIZED (
  SELECT
    "tenant_id"::text AS "tenant_id",
    "api_key_id"::text AS "api_key_id",
    date_bin('15 minutes', "created_at", timestamptz '2000-01-01 00:00:00+00') AS "quarter",
    count(*) AS "calls",
    coalesce(
      sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity'),
      0
    ) AS "spend",
    count(*) FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity') AS "nan_calls"
  FROM "proxy_calls"
  WHERE "created_at" >= (SELECT "counted_to" FROM "step") AND "created_at" < (SELECT "next" FROM "step")
  GROUP BY 1, 2, 3
),
"told" AS MATERIALIZED (
  SELECT
    "tenant_id",
    "api_key_id",
    "quarter",
    sum("calls") AS "calls",
    sum("spend") AS "spend",
    sum("nan_calls") AS "nan_calls"
  FROM (
    SELECT
      "tenant_id",
      "api_key_id",
      date_bin('15 minutes', "created_at", timestamptz '2000-01-01 00:00:00+00') AS "quarter",
      "calls",
      "spend",
      "nan_calls"
    FROM "gone"
    WHERE "created_at" < (SELECT "counted_to" FROM "step")
    UNION ALL
    SELECT "tenant_id", "api_key_id", "quarter", "calls", "spend", "nan_calls"
    FROM "counted"
  ) AS "all"
  GROUP BY 1, 2, 3
),
"starts" AS MATERIALIZED (
  SELECT
    "tenant_id",
    "api_key_id",
    "is_day",
    "start",
    sum("calls") AS "calls",
    sum("spend") AS "spend",
    sum("nan_calls") AS "nan_calls"
  FROM
    "told"
    CROSS JOIN LATERAL (
      VALUES (false, "quarter"), (true, date_bin('1 day', "quarter", timestamptz '2000-01-01 00:00:00+00'))
    ) AS "both" ("is_day", "start")
  GROUP BY 1, 2, 3, 4
),
"of_keys" AS (
  INSERT INTO
    "usage_key_buckets" AS "b" ("tenant_id", "api_key_id", "is_day", "start", "calls", "spend", "nan_calls")
  SELECT "tenant_id", "api_key_id", "is_day", "start", "calls", "spend", "nan_calls"
  FROM "starts"
  WHERE "api_key_id" IS NOT NULL
  ORDER BY "tenant_id", "api_key_id", "is_day", "start"
  ON CONFLICT ("tenant_id", "api_key_id", "is_day", "start") DO UPDATE SET
    "calls" = "b"."calls" + excluded."calls",
    "spend" = "b"."spend" + excluded."spend",
    "nan_calls" = "b"."nan_calls" + excluded."nan_calls"
),
"of_tenants" AS (
  INSERT INTO "usage_tenant_buckets" AS "b" ("tenant_id", "is_day", "start", "calls", "spend", "nan_calls")
  SELECT "tenant_id", "is_day", "start", sum("calls"), sum("spend"), sum("nan_calls")
  FROM "starts"
  GROUP BY 1, 2, 3
  ORDER BY 1, 2, 3
  ON CONFLICT ("tenant_id", "is_day", "start") DO UPDATE SET
    "calls" = "b"."calls" + excluded."calls",
    "spend" = "b"."spend" + excluded."spend",
    "nan_calls" = "b"."nan_calls" + excluded."nan_calls"
),
"old" AS (
  DELETE FROM "usage_progress"
  USING "step"
  WHERE "usage_progress"."generation" = "step"."generation"
  RETURNING
    "step".*,
    "next" = "step"."announced_to"
    AND NOT "is_set_back"
    AND (SELECT "until" FROM "asked") >= "step"."announced_to" + interval '1 second' AS "announces"
),
"new" AS (
  INSERT INTO
    "usage_progress" (
      "generation",
      "merged_below",
      "counted_to",
      "announced_to",
      "announced_in",
      "barrier"
    )
  SELECT
    "generation" + 1,
    least("open", coalesce("last", "open")),
    "next",
    CASE
      WHEN "is_set_back" THEN to_timestamp(setval('usage_frontier', extract(epoch FROM "announced_to")::bigint))
      WHEN "announces" THEN to_timestamp(
        setval(
          'usage_frontier',
          floor(extract(epoch FROM (SELECT "until" FROM "asked")))::bigint
        )
      )
      ELSE "announced_to"
    END,
    CASE
      WHEN "is_set_back"
      OR "announces" THEN pg_current_xact_id()::text::bigint
      ELSE "announced_in"
    END,
    CASE
      WHEN "is_set_back"
      OR "announces" THEN NULL
      WHEN "takes_barrier" THEN "unborn"
      ELSE "barrier"
    END
  FROM "old"
)
SELECT
  "next",
  (SELECT coalesce(sum("calls"), 0)::bigint FROM "counted"),
  (SELECT count(*) FROM "gone"),
  "last" IS NOT NULL
  OR "is_set_back"
  OR "announces"
  OR ("next" < "announced_to" AND ("all_know" OR "takes_barrier"))
FROM "old";

EXPLAIN EXECUTE roll_up_usage ('50', '2026-01-01T00:00:00Z');
