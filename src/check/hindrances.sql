-- What hinders a step or a method, and is part of the definition of api_keys or proxy_calls in the schema $1. $2 are the
-- columns that the crate knows, as table.column. The search path is pg_catalog alone.
WITH RECURSIVE tables AS (
    SELECT class.oid, relname, reltype, reloftype, relispartition, relpersistence, format('%I.%I', $1, relname) AS qualified
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
SELECT 'unlogged_table', relname, '', format('ALTER TABLE %s SET LOGGED', qualified)
FROM tables
WHERE relpersistence = 'u'
UNION ALL
SELECT 'subscription', relname, subname::text, ''
FROM tables
JOIN pg_subscription_rel ON srrelid = tables.oid
JOIN pg_subscription ON pg_subscription.oid = srsubid
UNION ALL
-- Of the texts with which a method looks up rows.
SELECT 'collation', relname, attname::text,
    format('ALTER TABLE %s ALTER COLUMN %I TYPE %s COLLATE "default"', qualified, attname, format_type(atttypid, atttypmod))
FROM tables
JOIN pg_attribute ON attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
JOIN pg_collation ON pg_collation.oid = attcollation
WHERE NOT collisdeterministic
    AND attname IN ('id', 'tenant_id', 'user_id', 'name', 'key_prefix', 'key_hash', 'status', 'api_key_id')
UNION ALL
SELECT 'collations', 'proxy_calls', calls.attname::text,
    format('ALTER TABLE %I.proxy_calls ALTER COLUMN %I TYPE %s COLLATE %s', $1, calls.attname,
        format_type(calls.atttypid, calls.atttypmod), keys.attcollation::regcollation)
FROM tables AS key_table, tables AS call_table, pg_attribute AS keys, pg_attribute AS calls
WHERE key_table.relname = 'api_keys' AND call_table.relname = 'proxy_calls'
    AND keys.attrelid = key_table.oid AND calls.attrelid = call_table.oid
    AND (keys.attname, calls.attname) IN (('id', 'api_key_id'), ('tenant_id', 'tenant_id'))
    AND keys.attcollation <> calls.attcollation
    AND NOT 'pg_catalog."default"'::regcollation IN (keys.attcollation, calls.attcollation)
UNION ALL
-- A trigger may set it.
SELECT 'required_column', relname, attname::text,
    format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT a value, or DROP NOT NULL', qualified, attname)
FROM tables
JOIN pg_attribute ON attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
JOIN pg_type ON pg_type.oid = atttypid
WHERE attnotnull AND NOT atthasdef AND attidentity = '' AND typdefault IS NULL
    AND NOT format('%s.%s', relname, attname) = ANY ($2)
    AND NOT EXISTS (
        SELECT FROM pg_trigger
        WHERE tgrelid = tables.oid AND tgtype & 7 = 7 AND tgenabled IN ('O', 'A') AND tgname NOT LIKE '~api\_keys%'
    )
UNION ALL
-- The two checks that exist during a migration only.
SELECT 'constraint', relname, conname::text,
    format('ALTER TABLE %s RENAME CONSTRAINT %I TO another name', qualified, conname)
FROM tables
JOIN pg_constraint ON conrelid = tables.oid AND conname = relname || '_created_at_is_set'
WHERE regexp_replace(pg_get_constraintdef(pg_constraint.oid), ' NOT VALID$', '') <> 'CHECK ((created_at IS NOT NULL))'
ORDER BY 1, 2, 3
