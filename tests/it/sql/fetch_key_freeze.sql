PREPARE fetch_key_freeze (text, text) AS
SELECT "api_keys"."is_frozen", "api_keys"."frozen_at", "api_keys"."frozen_by", "api_keys"."freeze_reason"
FROM "api_keys"
WHERE (("api_keys"."tenant_id" = $1) AND ("api_keys"."id" = $2));

EXPLAIN EXECUTE fetch_key_freeze ('11111111-1111-1111-1111-111111111111', 'key');
