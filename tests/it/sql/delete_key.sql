PREPARE delete_key (text, text, bigint) AS
DELETE FROM "api_keys"
WHERE (
  (("api_keys"."tenant_id" = $1) AND ("api_keys"."id" = $2)) AND ("api_keys"."revision" = $3)
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

EXPLAIN EXECUTE delete_key ('11111111-1111-1111-1111-111111111111', 'key', '1');
