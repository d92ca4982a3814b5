-- The parts of the index $2 (in schema $1), and their partitions.
SELECT part.oid, part_schema.nspname::pg_catalog.text AS schema, part.relname::pg_catalog.text AS name,
    part.relkind OPERATOR(pg_catalog.=) 'p' AS is_partitioned,
    index.relname::pg_catalog.text AS index,
    indisvalid AND indisready AS is_valid
FROM pg_catalog.pg_class AS parent
JOIN pg_catalog.pg_namespace AS parent_schema ON parent_schema.oid OPERATOR(pg_catalog.=) parent.relnamespace
JOIN pg_catalog.pg_inherits ON inhparent OPERATOR(pg_catalog.=) parent.oid
JOIN pg_catalog.pg_class AS index ON index.oid OPERATOR(pg_catalog.=) inhrelid
JOIN pg_catalog.pg_index ON indexrelid OPERATOR(pg_catalog.=) index.oid
JOIN pg_catalog.pg_class AS part ON part.oid OPERATOR(pg_catalog.=) indrelid
JOIN pg_catalog.pg_namespace AS part_schema ON part_schema.oid OPERATOR(pg_catalog.=) part.relnamespace
WHERE parent_schema.nspname OPERATOR(pg_catalog.=) $1 AND parent.relname OPERATOR(pg_catalog.=) $2
ORDER BY part.oid
