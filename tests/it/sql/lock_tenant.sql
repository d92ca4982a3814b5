PREPARE lock_tenant (text, text) AS
SELECT pg_advisory_xact_lock(hashtextextended($1, 0))::text, current_setting('transaction_isolation')
FROM (
  SELECT count(*)
  FROM (
    SELECT
    FROM "api_keys"
    WHERE "tenant_id" = $2
    ORDER BY "created_at" DESC, "id" DESC
    LIMIT 0
  ) AS "key"
) AS "tenant";

EXPLAIN EXECUTE lock_tenant ('11111111-1111-1111-1111-111111111111', '11111111-1111-1111-1111-111111111111');
