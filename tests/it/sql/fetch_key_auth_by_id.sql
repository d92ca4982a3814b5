PREPARE fetch_key_auth_by_id (text, text) AS
SELECT
  "api_keys"."id",
  "api_keys"."tenant_id",
  "api_keys"."user_id",
  "api_keys"."status",
  "api_keys"."is_frozen",
  "api_keys"."expires_at",
  "api_keys"."revoked_at",
  "api_keys"."permissions_json",
  "api_keys"."allowed_workers_json",
  "api_keys"."rate_limit_rpm",
  "api_keys"."max_concurrent_runs",
  "api_keys"."is_synthetic",
  "api_keys"."revision"
FROM "api_keys"
WHERE (("api_keys"."tenant_id" = $1) AND ("api_keys"."id" = $2));

EXPLAIN EXECUTE fetch_key_auth_by_id ('11111111-1111-1111-1111-111111111111', 'key');
