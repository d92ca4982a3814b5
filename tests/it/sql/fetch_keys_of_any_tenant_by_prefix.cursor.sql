PREPARE fetch_keys_of_any_tenant_by_prefix_cursor (text, text, timestamp with time zone, text, bigint) AS
SELECT
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
  "api_keys"."revision"
FROM "api_keys"
WHERE
  "api_keys"."id" = ANY (
    ARRAY(
      SELECT "found"."id"
      FROM (
        SELECT "api_keys"."created_at", "api_keys"."id"
        FROM "api_keys"
        WHERE "api_keys"."key_prefix" ~>=~ $1
          AND "api_keys"."key_prefix" ~<~ $2 OFFSET 0
      ) AS "found"
      WHERE ("found"."created_at", "found"."id") < ($3, $4)
      ORDER BY "found"."created_at" DESC, "found"."id" DESC
      LIMIT (SELECT $5)
    )
  )
ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC;

EXPLAIN EXECUTE fetch_keys_of_any_tenant_by_prefix_cursor ('sk-live', 'sk-livf', '2026-04-21T22:33:10.486016Z', 'key', '50');
