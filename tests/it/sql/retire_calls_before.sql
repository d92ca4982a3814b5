PREPARE retire_calls_before (timestamp with time zone) AS
WITH
"asked" AS (SELECT $1::timestamptz AS "moment"),
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
)
SELECT "to"
FROM "bound";

EXPLAIN EXECUTE retire_calls_before ('2026-01-01T00:00:00Z');
