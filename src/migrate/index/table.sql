-- The table of a name in a schema.
SELECT class.oid, nspname::pg_catalog.text AS schema, relname::pg_catalog.text AS name,
    relkind OPERATOR(pg_catalog.=) 'p' AS is_partitioned
FROM pg_catalog.pg_class AS class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid OPERATOR(pg_catalog.=) relnamespace
WHERE nspname OPERATOR(pg_catalog.=) $1 AND relname OPERATOR(pg_catalog.=) $2
