-- Whether the current role may read the bookkeeping table $2 of the schema $1. Returns no row if the table does not
-- exist.
SELECT pg_catalog.has_table_privilege(class.oid, 'SELECT') AS is_readable
FROM pg_catalog.pg_class AS class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid OPERATOR(pg_catalog.=) relnamespace
WHERE nspname OPERATOR(pg_catalog.=) $1 AND relname OPERATOR(pg_catalog.=) $2
