-- The foreign tables among the partitions of proxy_calls in the schema $1.
SELECT format('%I.%I', part_schema.nspname, part.relname) AS name
FROM pg_class AS class
JOIN pg_namespace AS home ON home.oid = class.relnamespace
CROSS JOIN pg_partition_tree(class.oid) AS tree
JOIN pg_class AS part ON part.oid = tree.relid
JOIN pg_namespace AS part_schema ON part_schema.oid = part.relnamespace
WHERE home.nspname = $1 AND class.relname = 'proxy_calls' AND class.relkind = 'p' AND part.relkind = 'f'
ORDER BY name
