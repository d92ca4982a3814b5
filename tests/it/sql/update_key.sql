PREPARE update_key (boolean, text, boolean, text, boolean, text, boolean, integer, boolean, integer, boolean, timestamp with time zone, text, text, bigint) AS
UPDATE "api_keys" SET
  "name" = CASE WHEN ($1) THEN ($2) ELSE ("api_keys"."name") END,
  "permissions_json" = CASE WHEN ($3) THEN ($4) ELSE ("api_keys"."permissions_json") END,
  "allowed_workers_json" = CASE WHEN ($5) THEN ($6) ELSE ("api_keys"."allowed_workers_json") END,
  "rate_limit_rpm" = CASE WHEN ($7) THEN ($8) ELSE ("api_keys"."rate_limit_rpm") END,
  "max_concurrent_runs" = CASE WHEN ($9) THEN ($10) ELSE ("api_keys"."max_concurrent_runs") END,
  "expires_at" = CASE WHEN ($11) THEN ($12) ELSE ("api_keys"."expires_at") END
WHERE (
  (("api_keys"."tenant_id" = $13) AND ("api_keys"."id" = $14)) AND ("api_keys"."revision" = $15)
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

EXPLAIN EXECUTE update_key ('true', 'text', 'true', 'text', 'true', NULL, 'true', '60', 'false', NULL, 'true', '2026-01-01T00:00:00Z', '11111111-1111-1111-1111-111111111111', 'key', '1');
