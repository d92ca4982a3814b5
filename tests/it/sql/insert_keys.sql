PREPARE insert_keys (text[], text[], text[], text[], text[], text[], text[], text[], integer[], integer[], text[], timestamp with time zone[], timestamp with time zone[], boolean[], text[]) AS
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
SELECT
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
FROM
  unnest(
    (SELECT $1),
    (SELECT $2),
    (SELECT $3),
    (SELECT $4),
    (SELECT $5),
    (SELECT $6),
    (SELECT $7),
    (SELECT $8),
    (SELECT $9),
    (SELECT $10),
    (SELECT $11),
    (SELECT $12),
    (SELECT $13),
    (SELECT $14),
    (SELECT $15)
  ) AS "new" (
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

EXPLAIN EXECUTE insert_keys ('{"11111111-1111-1111-1111-111111111111"}', '{"unused"}', '{NULL}', '{"text"}', '{"sk"}', '{"new"}', '{"text"}', '{NULL}', '{NULL}', '{NULL}', '{"Active"}', '{NULL}', '{"2026-01-01T00:00:00Z"}', '{"false"}', '{NULL}');
