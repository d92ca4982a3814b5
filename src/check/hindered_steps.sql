-- What hinders a step, and is part of the definition of api_keys or proxy_calls in the schema $1. The search path is
-- pg_catalog alone.
WITH RECURSIVE tables AS (
    SELECT class.oid, relname, reltype, reloftype, relispartition, format('%I.%I', $1, relname) AS qualified
    FROM pg_class AS class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname IN ('api_keys', 'proxy_calls') AND relkind IN ('r', 'p')
), row_types AS (
    -- The type of a key's row, and the types that contain it.
    SELECT reltype AS oid FROM tables WHERE relname = 'api_keys'
    UNION
    SELECT CASE WHEN classid = 'pg_type'::regclass THEN objid ELSE composite.reltype END
    FROM row_types
    JOIN pg_depend ON refclassid = 'pg_type'::regclass AND refobjid = row_types.oid
    LEFT JOIN pg_class AS composite ON classid = 'pg_class'::regclass AND composite.oid = objid AND relkind = 'c'
    WHERE classid = 'pg_type'::regclass OR composite.oid IS NOT NULL
)
SELECT 'row_type' AS kind, 'api_keys' AS "table", format('%s.%I', objid::regclass, attname) AS name,
    format('ALTER TABLE %s ALTER COLUMN %I TYPE jsonb USING to_jsonb(%2$I)', objid::regclass, attname) AS action
FROM row_types
JOIN pg_depend ON refclassid = 'pg_type'::regclass AND refobjid = row_types.oid
    AND classid = 'pg_class'::regclass AND objsubid > 0
JOIN pg_class AS class ON class.oid = objid AND relkind IN ('r', 'p', 'm')
JOIN pg_attribute ON attrelid = objid AND attnum = objsubid AND NOT attisdropped
UNION ALL
SELECT 'typed_table', relname, reloftype::regtype::text, format('ALTER TABLE %s NOT OF', qualified)
FROM tables
WHERE relname = 'api_keys' AND reloftype <> 0
UNION ALL
SELECT 'partition', relname, inhparent::regclass::text,
    format('ALTER TABLE %s DETACH PARTITION %s', inhparent::regclass, qualified)
FROM tables
JOIN pg_inherits ON inhrelid = tables.oid
WHERE relname = 'api_keys' AND relispartition
UNION ALL
-- The two checks that exist during a migration only.
SELECT 'constraint', relname, conname::text,
    format('ALTER TABLE %s RENAME CONSTRAINT %I TO another name', qualified, conname)
FROM tables
JOIN pg_constraint ON conrelid = tables.oid AND conname = relname || '_created_at_is_set'
WHERE regexp_replace(pg_get_constraintdef(pg_constraint.oid), ' NOT VALID$', '') <> 'CHECK ((created_at IS NOT NULL))'
ORDER BY 1, 2, 3
