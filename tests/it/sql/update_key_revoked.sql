PREPARE update_key_revoked (text, text, timestamp with time zone, text, text, text, text, bigint) AS
UPDATE "api_keys" SET
  "status" = $1,
  "revoked_at" = CASE
    WHEN (("api_keys"."status" = $2)) THEN ("api_keys"."revoked_at")
    ELSE ($3)
  END,
  "revoked_reason" = CASE
    WHEN (("api_keys"."status" = $4)) THEN ("api_keys"."revoked_reason")
    ELSE ($5)
  END
WHERE (
  (("api_keys"."tenant_id" = $6) AND ("api_keys"."id" = $7)) AND ("api_keys"."revision" = $8)
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

EXPLAIN EXECUTE update_key_revoked ('revoked', 'revoked', '2026-01-01T00:00:00Z', 'revoked', 'text', '11111111-1111-1111-1111-111111111111', 'key', '1');
