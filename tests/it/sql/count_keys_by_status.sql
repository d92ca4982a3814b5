PREPARE count_keys_by_status (text) AS
SELECT "api_keys"."status", COUNT(*)
FROM "api_keys"
WHERE ("api_keys"."tenant_id" = $1)
GROUP BY "api_keys"."status";

EXPLAIN EXECUTE count_keys_by_status ('11111111-1111-1111-1111-111111111111');
