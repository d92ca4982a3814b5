PREPARE fetch_keys_of_any_tenant_by_prefix (text, text, bigint) AS
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
      ORDER BY "found"."created_at" DESC, "found"."id" DESC
      LIMIT (SELECT $3)
    )
  )
ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC;

EXPLAIN EXECUTE fetch_keys_of_any_tenant_by_prefix ('sk-live', 'sk-livf', '50');
