PREPARE fetch_keys_by_user (text, text, timestamp with time zone, text, bigint) AS
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
  (("api_keys"."tenant_id" = $1) AND ("api_keys"."user_id" = $2))
  AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')
  AND ("api_keys"."created_at", "api_keys"."id") < ($3, $4)
ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC
LIMIT (SELECT $5);

EXPLAIN EXECUTE fetch_keys_by_user ('11111111-1111-1111-1111-111111111111', 'user', '2026-04-21T22:33:10.486016Z', 'key', '50');
