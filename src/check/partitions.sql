-- The partitions of proxy_calls in the schema $1 that hinder a step or a method: foreign tables, those that the current
-- role does not own, and those in a schema in which it cannot create an index. It reads pg_inherits and not
-- pg_partition_tree, which would wait for a lock on each partition. The search path is pg_catalog alone.
WITH RECURSIVE tree AS (
    SELECT class.oid, true AS is_root
    FROM pg_class AS class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname = 'proxy_calls' AND relkind = 'p'
    UNION ALL
    SELECT inhrelid, false FROM tree JOIN pg_inherits ON inhparent = tree.oid WHERE NOT inhdetachpending
), parts AS (
    SELECT format('%I.%I', nspname, relname) AS name, class.*, nspname
    FROM tree
    JOIN pg_class AS class ON class.oid = tree.oid
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE NOT is_root
)
SELECT 'foreign' AS kind, name, '' AS owner FROM parts WHERE relkind = 'f'
UNION ALL
SELECT 'owner', name, pg_get_userbyid(relowner)::text FROM parts WHERE NOT pg_has_role(relowner, 'USAGE')
UNION ALL
SELECT DISTINCT 'schema', quote_ident(nspname), ''
FROM parts
WHERE relkind <> 'f' AND NOT (has_schema_privilege(relnamespace, 'CREATE') AND has_schema_privilege(relnamespace, 'USAGE'))
ORDER BY 1, 2
