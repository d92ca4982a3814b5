-- The relations and types of the schema $1 that have one of the names $2. A table needs a free name among both. The type
-- of a table itself is left out, and so are array types, which PostgreSQL renames. The search path is pg_catalog alone.
SELECT class.relname::text AS name,
    CASE class.relkind
        WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'f' THEN 'foreign table' WHEN 'v' THEN 'view'
        WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' WHEN 'c' THEN 'type' ELSE 'index'
    END AS kind
FROM pg_class AS class
WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1) AND relname = ANY ($2)
UNION ALL
SELECT typname::text, 'type'
FROM pg_type
WHERE typnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1) AND typname = ANY ($2)
    AND typrelid = 0 AND typcategory <> 'A'
ORDER BY name, kind
