PREPARE fetch_api_key_by_id (text, text) AS
SELECT
  "api_keys"."id",
  "api_keys"."name",
  "api_keys"."key_prefix",
  "api_keys"."status",
  "api_keys"."created_at",
  "api_keys"."last_used_at",
  "api_keys"."expires_at",
  "api_keys"."total_requests",
  "api_keys"."permissions_json",
  "api_keys"."allowed_workers_json",
  "api_keys"."rate_limit_rpm",
  "api_keys"."max_concurrent_runs",
  "api_keys"."revoked_at",
  "api_keys"."revoked_reason"
FROM "api_keys"
WHERE (
  (("api_keys"."tenant_id" = $1) AND NOT ("api_keys"."is_synthetic")) AND ("api_keys"."id" = $2)
);

EXPLAIN EXECUTE fetch_api_key_by_id ('11111111-1111-1111-1111-111111111111', 'key');
