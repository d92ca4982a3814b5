PREPARE try_record_key_uses (text[], bigint[], timestamp with time zone[], text, text, text) AS
WITH
"uses" AS (
  SELECT "uses".*
  FROM unnest((SELECT $1), (SELECT $2), (SELECT $3)) AS "uses" ("key_id", "count", "at")
),
"locked" AS (
  SELECT "api_keys"."tenant_id", "api_keys"."id", "uses"."count", "uses"."at"
  FROM "uses" JOIN "api_keys" ON "api_keys"."id" = "uses"."key_id" AND "api_keys"."tenant_id" = $4
  ORDER BY "api_keys"."tenant_id", "api_keys"."id"
  FOR NO KEY UPDATE OF "api_keys" SKIP LOCKED
),
"recorded" AS (
  UPDATE "api_keys" SET
    "total_requests" = CASE
      WHEN "api_keys"."total_requests" > 9223372036854775807 - "locked"."count" THEN 9223372036854775807
      ELSE "api_keys"."total_requests" + "locked"."count"
    END,
    "last_used_at" = greatest("api_keys"."last_used_at", "locked"."at")
  FROM "locked"
  WHERE "api_keys"."id" = "locked"."id" AND "api_keys"."tenant_id" = $5
)
SELECT "found"."tenant_id", "found"."id"
FROM
  "uses"
  CROSS JOIN LATERAL (
    SELECT "api_keys"."tenant_id", "api_keys"."id"
    FROM "api_keys"
    WHERE "api_keys"."id" = "uses"."key_id"
      AND "api_keys"."tenant_id" = $6 OFFSET 0
  ) AS "found"
WHERE
  ("found"."tenant_id", "found"."id") NOT IN (SELECT "locked"."tenant_id", "locked"."id" FROM "locked");

EXPLAIN EXECUTE try_record_key_uses ('{"key"}', '{"1"}', '{"2026-01-01T00:00:00Z"}', '11111111-1111-1111-1111-111111111111', '11111111-1111-1111-1111-111111111111', '11111111-1111-1111-1111-111111111111');
