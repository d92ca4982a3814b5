-- The partitions of the table $1 that have no part of its index $3 (in schema $2) yet, and for each a valid
-- index of the wanted kind ($4: unique, $5: from USING on) that is attached to nothing.
SELECT part.oid, nspname::pg_catalog.text AS schema, part.relname::pg_catalog.text AS name,
    part.relkind OPERATOR(pg_catalog.=) 'p' AS is_partitioned,
    part.relkind OPERATOR(pg_catalog.=) 'f' AS is_foreign,
    (
        SELECT index.relname::pg_catalog.text
        FROM pg_catalog.pg_index
        JOIN pg_catalog.pg_class AS index ON index.oid OPERATOR(pg_catalog.=) indexrelid
        WHERE indrelid OPERATOR(pg_catalog.=) part.oid
            AND indisvalid AND indisready AND indislive
            AND NOT index.relispartition
            AND indisunique OPERATOR(pg_catalog.=) $4
            AND pg_catalog.regexp_replace(pg_catalog.regexp_replace(
                pg_catalog.substr(
                    pg_catalog.pg_get_indexdef(indexrelid),
                    1 OPERATOR(pg_catalog.+) pg_catalog.length(pg_catalog.format(
                        'CREATE %sINDEX %I ON %s%I.%I ',
                        CASE WHEN indisunique THEN 'UNIQUE ' END,
                        index.relname,
                        CASE WHEN index.relkind OPERATOR(pg_catalog.=) 'I' THEN 'ONLY ' END,
                        nspname,
                        part.relname
                    ))
                ),
                ' WITH \([^()]*\)', ''
            ), '\((\w+)\)::text', '\1', 'g') OPERATOR(pg_catalog.=) $5
        ORDER BY index.relname
        LIMIT 1
    ) AS unattached_index
FROM pg_catalog.pg_inherits AS child
JOIN pg_catalog.pg_class AS part ON part.oid OPERATOR(pg_catalog.=) child.inhrelid
JOIN pg_catalog.pg_namespace ON pg_namespace.oid OPERATOR(pg_catalog.=) part.relnamespace
WHERE child.inhparent OPERATOR(pg_catalog.=) $1
    AND NOT child.inhdetachpending
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_inherits AS attached
        JOIN pg_catalog.pg_index ON indexrelid OPERATOR(pg_catalog.=) attached.inhrelid
        JOIN pg_catalog.pg_class AS parent ON parent.oid OPERATOR(pg_catalog.=) attached.inhparent
        JOIN pg_catalog.pg_namespace AS parent_schema
            ON parent_schema.oid OPERATOR(pg_catalog.=) parent.relnamespace
        WHERE indrelid OPERATOR(pg_catalog.=) part.oid
            AND parent_schema.nspname OPERATOR(pg_catalog.=) $2
            AND parent.relname OPERATOR(pg_catalog.=) $3
    )
ORDER BY part.oid
