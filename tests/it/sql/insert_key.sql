PREPARE insert_key (text, text, text, text, text, text, text, text, integer, integer, text, timestamp with time zone, timestamp with time zone, boolean, text) AS
INSERT INTO
  "api_keys" (
    "tenant_id",
    "id",
    "user_id",
    "name",
    "key_prefix",
    "key_hash",
    "permissions_json",
    "allowed_workers_json",
    "rate_limit_rpm",
    "max_concurrent_runs",
    "status",
    "expires_at",
    "created_at",
    "is_synthetic",
    "synthetic_scenario_id"
  )
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
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

EXPLAIN EXECUTE insert_key ('11111111-1111-1111-1111-111111111111', 'unused', NULL, 'text', 'sk-live-abcd', 'new', NULL, NULL, NULL, NULL, 'active', NULL, '2026-01-01T00:00:00Z', 'false', NULL);
