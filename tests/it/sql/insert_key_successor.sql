PREPARE insert_key_successor (text, text, text, timestamp with time zone, boolean, timestamp with time zone, text, text, bigint) AS
INSERT INTO
  "api_keys" (
    "tenant_id",
    "id",
    "key_prefix",
    "key_hash",
    "created_at",
    "expires_at",
    "user_id",
    "name",
    "permissions_json",
    "allowed_workers_json",
    "rate_limit_rpm",
    "max_concurrent_runs",
    "status",
    "revoked_at",
    "revoked_reason",
    "is_frozen",
    "frozen_at",
    "frozen_by",
    "freeze_reason",
    "is_synthetic",
    "synthetic_scenario_id"
  )
SELECT
  "api_keys"."tenant_id",
  $1,
  $2,
  $3,
  $4,
  CASE WHEN ($5) THEN ($6) ELSE ("api_keys"."expires_at") END,
  "api_keys"."user_id",
  "api_keys"."name",
  "api_keys"."permissions_json",
  "api_keys"."allowed_workers_json",
  "api_keys"."rate_limit_rpm",
  "api_keys"."max_concurrent_runs",
  "api_keys"."status",
  "api_keys"."revoked_at",
  "api_keys"."revoked_reason",
  "api_keys"."is_frozen",
  "api_keys"."frozen_at",
  "api_keys"."frozen_by",
  "api_keys"."freeze_reason",
  "api_keys"."is_synthetic",
  "api_keys"."synthetic_scenario_id"
FROM "api_keys"
WHERE (
  (("api_keys"."tenant_id" = $7) AND ("api_keys"."id" = $8)) AND ("api_keys"."revision" = $9)
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

EXPLAIN EXECUTE insert_key_successor ('unused', 'sk-live-abcd', 'new', '2026-01-01T00:00:00Z', 'false', NULL, '11111111-1111-1111-1111-111111111111', 'key', '1');
