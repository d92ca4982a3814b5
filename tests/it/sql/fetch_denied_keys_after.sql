PREPARE fetch_denied_keys_after (bigint) AS
SELECT "tenant_id", "id", "status", "is_frozen", "revision"
FROM "api_keys"
WHERE ("is_frozen" OR "status" <> 'active')
ORDER BY "tenant_id", "id"
LIMIT $1;

EXPLAIN EXECUTE fetch_denied_keys_after ('50');
