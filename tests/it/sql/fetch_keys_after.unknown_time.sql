PREPARE fetch_keys_after_unknown_time (text, text, text, timestamp with time zone, text, bigint) AS
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
  AND ("api_keys"."created_at", "api_keys"."id") < (
    coalesce(
      (
        SELECT "api_keys"."created_at"
        FROM "api_keys"
        WHERE ("api_keys"."tenant_id" = $2)
          AND "api_keys"."id" = $3
      ),
      $4
    ),
    $5
  )
ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC
LIMIT (SELECT $6);

EXPLAIN EXECUTE fetch_keys_after_unknown_time ('11111111-1111-1111-1111-111111111111', '11111111-1111-1111-1111-111111111111', 'key', '262142-12-31T23:59:59.999999Z', 'key', '50');
