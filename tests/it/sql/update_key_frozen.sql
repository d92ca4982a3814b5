PREPARE update_key_frozen (boolean, timestamp with time zone, text, text, text, text, bigint) AS
UPDATE "api_keys" SET
  "is_frozen" = $1, "frozen_at" = $2, "frozen_by" = $3, "freeze_reason" = $4
WHERE (
  (("api_keys"."tenant_id" = $5) AND ("api_keys"."id" = $6)) AND ("api_keys"."revision" = $7)
)
RETURNING
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
  "api_keys"."revision";

EXPLAIN EXECUTE update_key_frozen ('true', '2026-01-01T00:00:00Z', NULL, NULL, '11111111-1111-1111-1111-111111111111', 'key', '1');
