PREPARE fetch_keys_expiring_cursor (text, text, timestamp with time zone, timestamp with time zone, text, bigint) AS
SELECT
  "api_keys"."id",
  "api_keys"."tenant_id",
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
  "api_keys"."tenant_id" = $1
  AND "api_keys"."status" = $2
  AND "api_keys"."expires_at" < (SELECT $3)
  AND ("api_keys"."expires_at", "api_keys"."id") > ((SELECT $4), $5)
ORDER BY "api_keys"."expires_at", "api_keys"."id"
LIMIT (SELECT $6);

EXPLAIN EXECUTE fetch_keys_expiring_cursor ('11111111-1111-1111-1111-111111111111', 'active', '2026-01-01T00:00:00Z', '1970-01-01T00:00:00Z', '', '50');
