PREPARE count_api_keys (text) AS
SELECT count(*)
FROM "api_keys"
WHERE
  (("api_keys"."tenant_id" = $1) AND NOT ("api_keys"."is_synthetic"))
  AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity');

EXPLAIN EXECUTE count_api_keys ('11111111-1111-1111-1111-111111111111');
