PREPARE fetch_denied_keys_after (bigint) AS
SELECT
  pg_catalog.convert_to(
    "api_keys"."tenant_id",
    (
      CASE
        pg_catalog.getdatabaseencoding()
        WHEN 'SQL_ASCII' THEN 'SQL_ASCII'
        ELSE 'UTF8'
      END
    )::pg_catalog.name
  ),
  pg_catalog.convert_to(
    "api_keys"."id",
    (
      CASE
        pg_catalog.getdatabaseencoding()
        WHEN 'SQL_ASCII' THEN 'SQL_ASCII'
        ELSE 'UTF8'
      END
    )::pg_catalog.name
  ),
  pg_catalog.convert_to(
    "api_keys"."status",
    (
      CASE
        pg_catalog.getdatabaseencoding()
        WHEN 'SQL_ASCII' THEN 'SQL_ASCII'
        ELSE 'UTF8'
      END
    )::pg_catalog.name
  ),
  "is_frozen",
  "revision"
FROM "api_keys"
WHERE ("is_frozen" OR "status" <> 'active')
ORDER BY "tenant_id", "id"
LIMIT $1;

EXPLAIN EXECUTE fetch_denied_keys_after ('50');
