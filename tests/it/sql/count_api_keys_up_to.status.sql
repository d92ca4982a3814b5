PREPARE count_api_keys_up_to_status (text, text, bigint) AS
SELECT count(*)
FROM (
  SELECT
  FROM "api_keys"
  WHERE
    (
      (("api_keys"."tenant_id" = $1) AND NOT ("api_keys"."is_synthetic"))
      AND ("api_keys"."status" = $2)
    )
    AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')
  LIMIT (SELECT $3)
) AS counted;

EXPLAIN EXECUTE count_api_keys_up_to_status ('11111111-1111-1111-1111-111111111111', 'active', '50');
