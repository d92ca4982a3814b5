PREPARE delete_keys (text, bigint, text, text) AS
WITH
"batch" AS (
  SELECT "api_keys"."id"
  FROM "api_keys"
  WHERE
    ("api_keys"."tenant_id" = $1)
    AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')
  ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC
  LIMIT (SELECT $2)
),
"locked" AS (
  SELECT "api_keys"."id"
  FROM "batch" JOIN "api_keys" ON "api_keys"."id" = "batch"."id" AND "api_keys"."tenant_id" = $3
  ORDER BY "api_keys"."id"
  FOR UPDATE OF "api_keys"
)
DELETE FROM "api_keys"
USING "locked"
WHERE "api_keys"."id" = "locked"."id" AND "api_keys"."tenant_id" = $4;

EXPLAIN EXECUTE delete_keys ('11111111-1111-1111-1111-111111111111', '50', '11111111-1111-1111-1111-111111111111', '11111111-1111-1111-1111-111111111111');
