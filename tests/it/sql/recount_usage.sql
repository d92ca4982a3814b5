PREPARE recount_usage (timestamp with time zone) AS
WITH
"asked" AS (SELECT $1::timestamptz AS "since"),
"progress" AS MATERIALIZED (
  SELECT
    "counted_to",
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
"start" AS MATERIALIZED (
  SELECT
    "generation",
    "counted_to",
    least(
      "counted_to",
      greatest(
        date_bin('15 minutes', "since", timestamptz '2000-01-01 00:00:00+00'),
        (SELECT "deleted_to" FROM "usage_retention")
      )
    ) AS "from"
  FROM "progress" CROSS JOIN "asked"
),
"range" AS MATERIALIZED (
  SELECT
    "generation",
    "counted_to",
    "from",
    date_bin('1 day', "from", timestamptz '2000-01-01 00:00:00+00') AS "day",
    least(
      "counted_to",
      CASE
        WHEN "first" IS NOT NULL THEN greatest(
          date_bin('1 day', "first", timestamptz '2000-01-01 00:00:00+00') + interval '24 hours',
          '4714-11-25 00:00:00+00 BC'
        )
      END
    ) AS "to"
  FROM
    "start"
    CROSS JOIN LATERAL (
      SELECT (
        SELECT "created_at"
        FROM "proxy_calls"
        WHERE "created_at" >= "from"
          AND "created_at" < "counted_to"
        ORDER BY "created_at"
        LIMIT 1
      ) AS "first"
    ) AS "call"
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
"gone" AS (
  DELETE FROM "usage_changes"
  USING "range"
  WHERE "created_at" >= "range"."from" AND "created_at" < "range"."to"
),
"of_keys" AS (
  INSERT INTO
    "usage_key_buckets" AS "b" ("tenant_id", "api_key_id", "is_day", "start", "calls", "spend", "nan_calls")
  SELECT "tenant_id", "api_key_id", "is_day", "start", sum("calls"), sum("spend"), sum("nan_calls")
  FROM (
    SELECT "tenant_id", "api_key_id", "is_day", "of"."start", "calls", "spend", "nan_calls"
    FROM
      "counted" AS "c"
      CROSS JOIN LATERAL (
        VALUES (false, "c"."start"), (true, date_bin('1 day', "c"."start", timestamptz '2000-01-01 00:00:00+00'))
      ) AS "of" ("is_day", "start")
    WHERE "api_key_id" IS NOT NULL
    UNION ALL
    SELECT "tenant_id", "api_key_id", "is_day", "start", 0, 0, 0
    FROM "usage_key_buckets"
    WHERE
      "start" >= (SELECT "day" FROM "range")
      AND "start" < (SELECT "to" FROM "range")
      AND ("is_day" OR "start" >= (SELECT "from" FROM "range"))
    UNION ALL
    SELECT "tenant_id", "api_key_id", true, (SELECT "day" FROM "range"), "calls", "spend", "nan_calls"
    FROM "usage_key_buckets"
    WHERE NOT "is_day"
      AND "start" >= (SELECT "day" FROM "range") AND "start" < (SELECT "from" FROM "range")
  ) AS "all"
  GROUP BY "tenant_id", "api_key_id", "is_day", "start"
  ORDER BY "tenant_id", "api_key_id", "is_day", "start"
  ON CONFLICT ("tenant_id", "api_key_id", "is_day", "start") DO UPDATE SET
    "calls" = excluded."calls", "spend" = excluded."spend", "nan_calls" = excluded."nan_calls"
  WHERE
    ("b"."calls", "b"."spend", "b"."nan_calls") IS DISTINCT FROM (excluded."calls", excluded."spend", excluded."nan_calls")
  RETURNING "is_day"
),
"of_tenants" AS (
  INSERT INTO "usage_tenant_buckets" AS "b" ("tenant_id", "is_day", "start", "calls", "spend", "nan_calls")
  SELECT "tenant_id", "is_day", "start", sum("calls"), sum("spend"), sum("nan_calls")
  FROM (
    SELECT "tenant_id", "is_day", "of"."start", "calls", "spend", "nan_calls"
    FROM
      "counted" AS "c"
      CROSS JOIN LATERAL (
        VALUES (false, "c"."start"), (true, date_bin('1 day', "c"."start", timestamptz '2000-01-01 00:00:00+00'))
      ) AS "of" ("is_day", "start")
    WHERE true
    UNION ALL
    SELECT "tenant_id", "is_day", "start", 0, 0, 0
    FROM "usage_tenant_buckets"
    WHERE
      "start" >= (SELECT "day" FROM "range")
      AND "start" < (SELECT "to" FROM "range")
      AND ("is_day" OR "start" >= (SELECT "from" FROM "range"))
    UNION ALL
    SELECT "tenant_id", true, (SELECT "day" FROM "range"), "calls", "spend", "nan_calls"
    FROM "usage_tenant_buckets"
    WHERE NOT "is_day"
      AND "start" >= (SELECT "day" FROM "range") AND "start" < (SELECT "from" FROM "range")
  ) AS "all"
  GROUP BY "tenant_id", "is_day", "start"
  ORDER BY "tenant_id", "is_day", "start"
  ON CONFLICT ("tenant_id", "is_day", "start") DO UPDATE SET
    "calls" = excluded."calls", "spend" = excluded."spend", "nan_calls" = excluded."nan_calls"
  WHERE
    ("b"."calls", "b"."spend", "b"."nan_calls") IS DISTINCT FROM (excluded."calls", excluded."spend", excluded."nan_calls")
  RETURNING "is_day"
),
"locked" AS (
  UPDATE "usage_progress" SET
    "generation" = "usage_progress"."generation" + 1
  FROM "range"
  WHERE "usage_progress"."generation" = "range"."generation"
  RETURNING clock_timestamp()
)
SELECT "to", (SELECT count(*) FROM "of_keys" WHERE NOT "is_day"), "to" < "counted_to"
FROM "range";

EXPLAIN EXECUTE recount_usage ('2026-01-01T00:00:00Z');
