PREPARE fetch_keys_with_usage (text, bigint, text, timestamp with time zone) AS
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
  "api_keys"."revision",
  "calls"."count",
  "calls"."sum"
FROM (
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
    ("api_keys"."tenant_id" = $1)
    AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')
  ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC
  LIMIT (SELECT $2)
) AS "api_keys"
  CROSS JOIN LATERAL (
    SELECT count(*), sum("cost_cents")
    FROM "proxy_calls"
    WHERE
      "proxy_calls"."tenant_id" = $3
      AND "proxy_calls"."api_key_id" = "api_keys"."id"
      AND "proxy_calls"."created_at" >= $4
  ) AS "calls"
ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC;

EXPLAIN EXECUTE fetch_keys_with_usage ('11111111-1111-1111-1111-111111111111', '50', '11111111-1111-1111-1111-111111111111', '2026-01-01T00:00:00Z');
