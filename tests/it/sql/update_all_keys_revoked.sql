PREPARE update_all_keys_revoked (text, text, text, timestamp with time zone, text, text) AS
WITH
"locked" AS (
  SELECT "id"
  FROM "api_keys"
  WHERE "tenant_id" = $1 AND "status" <> $2
  ORDER BY "id"
  FOR NO KEY UPDATE
)
UPDATE "api_keys" SET
  "status" = $3, "revoked_at" = $4, "revoked_reason" = $5
FROM "locked"
WHERE "api_keys"."id" = "locked"."id" AND "api_keys"."tenant_id" = $6;

EXPLAIN EXECUTE update_all_keys_revoked ('11111111-1111-1111-1111-111111111111', 'Revoked', 'Revoked', '2026-01-01T00:00:00Z', 'text', '11111111-1111-1111-1111-111111111111');
