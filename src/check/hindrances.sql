-- What hinders a method, and is part of the definition of api_keys or proxy_calls in the schema $1. $2 are the columns that
-- the crate knows, as table.column. The search path is pg_catalog alone.
WITH tables AS (
    SELECT class.oid, relname, relpersistence, format('%I.%I', $1, relname) AS qualified
    FROM pg_class AS class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname IN ('api_keys', 'proxy_calls') AND relkind IN ('r', 'p')
), columns AS MATERIALIZED (
    SELECT tables.oid AS relid, relname, qualified, attname, atttypid, atttypmod, attcollation,
        attnotnull AND NOT atthasdef AND attidentity = '' AS is_required
    FROM tables
    JOIN pg_attribute ON attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
)
SELECT 'unlogged_table' AS kind, relname AS "table", '' AS name, format('ALTER TABLE %s SET LOGGED', qualified) AS action
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
FROM columns
WHERE attname IN ('id', 'tenant_id', 'user_id', 'name', 'key_prefix', 'key_hash', 'status', 'api_key_id')
    AND attcollation IN (SELECT oid FROM pg_collation WHERE NOT collisdeterministic)
UNION ALL
SELECT 'collations', 'proxy_calls', calls.attname::text,
    format('ALTER TABLE %s ALTER COLUMN %I TYPE %s COLLATE %s', calls.qualified, calls.attname,
        format_type(calls.atttypid, calls.atttypmod), keys.attcollation::regcollation)
FROM columns AS keys
JOIN columns AS calls ON keys.relname = 'api_keys' AND calls.relname = 'proxy_calls'
    AND (keys.attname, calls.attname) IN (('id', 'api_key_id'), ('tenant_id', 'tenant_id'))
WHERE keys.attcollation <> calls.attcollation
    AND NOT 'pg_catalog."default"'::regcollation IN (keys.attcollation, calls.attcollation)
UNION ALL
-- A trigger may set it.
SELECT 'required_column', relname, attname::text,
    format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT a value, or DROP NOT NULL', qualified, attname)
FROM columns
WHERE is_required AND NOT format('%s.%s', relname, attname) = ANY ($2)
    AND (SELECT typdefault FROM pg_type WHERE pg_type.oid = atttypid) IS NULL
    AND NOT EXISTS (
        SELECT FROM pg_trigger
        WHERE tgrelid = relid AND tgtype & 7 = 7 AND tgenabled IN ('O', 'A') AND tgname NOT LIKE '~api\_keys%'
    )
ORDER BY 1, 2, 3
