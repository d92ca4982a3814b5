-- What the current role may do with the bookkeeping table $2 of the schema $1. Returns no row if there is no such relation.
-- Reading a view, a column of another type, or a table with policies could run code of its owner with the rights of this
-- role.
SELECT pg_catalog.has_table_privilege(class.oid, 'SELECT') AND NOT pg_catalog.row_security_active(class.oid) AS is_readable,
    pg_catalog.has_table_privilege(class.oid, 'INSERT') AS is_writable,
    relkind OPERATOR(pg_catalog.=) 'r' AND EXISTS (
        SELECT FROM pg_catalog.pg_attribute
        WHERE attrelid OPERATOR(pg_catalog.=) class.oid
            AND attname OPERATOR(pg_catalog.=) 'version' AND NOT attisdropped
            AND atttypid OPERATOR(pg_catalog.=) ANY (
                ARRAY['pg_catalog.varchar'::pg_catalog.regtype, 'pg_catalog.text'::pg_catalog.regtype]::pg_catalog.oid[]
            )
    ) AS is_diesels
FROM pg_catalog.pg_class AS class
JOIN pg_catalog.pg_namespace ON pg_namespace.oid OPERATOR(pg_catalog.=) relnamespace
WHERE nspname OPERATOR(pg_catalog.=) $1 AND relname OPERATOR(pg_catalog.=) $2
