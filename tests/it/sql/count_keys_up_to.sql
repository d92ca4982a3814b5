PREPARE count_keys_up_to (text, bigint) AS
SELECT count(*)
FROM (
  SELECT
  FROM "api_keys"
  WHERE
    ("api_keys"."tenant_id" = $1)
    AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')
  LIMIT (SELECT $2)
) AS counted;

EXPLAIN EXECUTE count_keys_up_to ('11111111-1111-1111-1111-111111111111', '50');
