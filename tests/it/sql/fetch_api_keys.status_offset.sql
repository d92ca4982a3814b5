PREPARE fetch_api_keys_status_offset (text, text, text, text, bigint, bigint) AS
SELECT
  "api_keys"."id",
  "api_keys"."name",
  "api_keys"."key_prefix",
  "api_keys"."status",
  "api_keys"."created_at",
  "api_keys"."last_used_at",
  "api_keys"."expires_at",
  "api_keys"."total_requests",
  "api_keys"."is_synthetic"
FROM "api_keys"
WHERE
  (
    (("api_keys"."tenant_id" = $1) AND NOT ("api_keys"."is_synthetic"))
    AND ("api_keys"."status" = $2)
  )
  AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')
  AND ("api_keys"."created_at", "api_keys"."id") <= (
    SELECT "api_keys"."created_at", "api_keys"."id"
    FROM "api_keys"
    WHERE
      (
        (("api_keys"."tenant_id" = $3) AND NOT ("api_keys"."is_synthetic"))
        AND ("api_keys"."status" = $4)
      )
      AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')
    ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC
    LIMIT 1 OFFSET (SELECT $5)
  )
ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC
LIMIT (SELECT $6);

EXPLAIN EXECUTE fetch_api_keys_status_offset ('11111111-1111-1111-1111-111111111111', 'active', '11111111-1111-1111-1111-111111111111', 'active', '1', '50');
