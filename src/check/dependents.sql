-- The objects that depend on the column key_prefix of api_keys in the schema $1, because of which PostgreSQL refuses to
-- change its type, or would rebuild an index under a strong lock.
WITH prefix AS (
    SELECT attrelid, attnum, atttypid, attinhcount
    FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname = 'api_keys' AND attname = 'key_prefix'
)
SELECT DISTINCT CASE
        WHEN classid = 'pg_rewrite'::regclass THEN (
            SELECT CASE relkind WHEN 'm' THEN 'materialized view ' WHEN 'v' THEN 'view ' ELSE 'rule on ' END
                || ev_class::regclass
            FROM pg_rewrite JOIN pg_class ON pg_class.oid = ev_class WHERE pg_rewrite.oid = objid
        )
        ELSE pg_describe_object(classid, objid, objsubid)
    END AS name
FROM prefix
JOIN pg_depend ON refclassid = 'pg_class'::regclass AND refobjid = attrelid AND refobjsubid = attnum
WHERE classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_trigger'::regclass, 'pg_proc'::regclass)
    OR classid = 'pg_publication_rel'::regclass
    OR classid = 'pg_attrdef'::regclass AND EXISTS (
        SELECT FROM pg_attrdef JOIN pg_attribute AS generated
            ON generated.attrelid = adrelid AND generated.attnum = adnum
        WHERE pg_attrdef.oid = objid AND attgenerated <> ''
    )
    -- In PostgreSQL 14 a generated column depends by itself, not by its default.
    OR classid = 'pg_class'::regclass AND EXISTS (
        SELECT FROM pg_attribute AS generated
        WHERE generated.attrelid = objid AND generated.attnum = objsubid AND attgenerated <> ''
    )
    OR classid = 'pg_class'::regclass AND EXISTS (
        SELECT FROM pg_index WHERE indexrelid = objid AND (indexprs IS NOT NULL OR indpred IS NOT NULL)
    )
UNION
SELECT 'domain ' || format_type(atttypid, NULL)
FROM prefix JOIN pg_type ON pg_type.oid = atttypid
WHERE typtype = 'd'
UNION
SELECT 'parent table ' || inhparent::regclass
FROM prefix JOIN pg_inherits ON inhrelid = attrelid
WHERE attinhcount > 0
ORDER BY name
