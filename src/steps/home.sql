-- The first table of each of the names $2 in the schemas $1, which are in the order of the search path. Temporary
-- tables are not searched, because the path does not contain their schema.
SELECT DISTINCT ON (relname) relname::pg_catalog.text AS name, nspname::pg_catalog.text AS schema,
    class.oid, relkind::pg_catalog.text AS kind
FROM pg_catalog.unnest($1) WITH ORDINALITY AS path (schema, nth)
JOIN pg_catalog.pg_namespace ON nspname OPERATOR(pg_catalog.=) path.schema
JOIN pg_catalog.pg_class AS class ON relnamespace OPERATOR(pg_catalog.=) pg_namespace.oid
WHERE relname OPERATOR(pg_catalog.=) ANY ($2)
ORDER BY relname, nth
