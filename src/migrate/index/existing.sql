-- The relation with the name $2 in the schema $1. If it is an index: its definition from USING on, without storage
-- parameters and without the cast of a column to text, which is shown for varchar only. A concurrent build holds a lock
-- on the table until it ends, and has a row in pg_stat_progress_create_index. Other roles can read the columns of that
-- row that are used here.
SELECT indrelid AS "table",
    coalesce(indisvalid AND indisready AND indislive, false) AS is_valid,
    coalesce(indisunique AND indimmediate, false) AS is_unique,
    (
        SELECT conname::pg_catalog.text
        FROM pg_catalog.pg_constraint
        WHERE conindid OPERATOR(pg_catalog.=) index.oid
            AND contype OPERATOR(pg_catalog.=) ANY ('{p,u,x}')
        LIMIT 1
    ) AS "constraint",
    EXISTS (
        SELECT FROM pg_catalog.pg_stat_progress_create_index AS build
        JOIN pg_catalog.pg_locks AS held ON held.pid OPERATOR(pg_catalog.=) build.pid
        WHERE build.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
            AND held.relation OPERATOR(pg_catalog.=) indrelid
            AND held.mode OPERATOR(pg_catalog.=) 'ShareUpdateExclusiveLock'
            AND held.granted
    ) AS is_being_built,
    coalesce(
        pg_catalog.regexp_replace(pg_catalog.regexp_replace(
            pg_catalog.substr(
                pg_catalog.pg_get_indexdef(indexrelid),
                1 OPERATOR(pg_catalog.+) pg_catalog.length(pg_catalog.format(
                    'CREATE %sINDEX %I ON %s%I.%I ',
                    CASE WHEN indisunique THEN 'UNIQUE ' END,
                    index.relname,
                    CASE WHEN index.relkind OPERATOR(pg_catalog.=) 'I' THEN 'ONLY ' END,
                    coalesce(table_schema.nspname, ''),
                    coalesce("table".relname, '')
                ))
            ),
            ' WITH \([^()]*\)', ''
        ), '\((\w+)\)::text', '\1', 'g'),
        ''
    ) AS definition
FROM pg_catalog.pg_class AS index
JOIN pg_catalog.pg_namespace AS index_schema ON index_schema.oid OPERATOR(pg_catalog.=) index.relnamespace
LEFT JOIN pg_catalog.pg_index ON indexrelid OPERATOR(pg_catalog.=) index.oid
LEFT JOIN pg_catalog.pg_class AS "table" ON "table".oid OPERATOR(pg_catalog.=) indrelid
LEFT JOIN pg_catalog.pg_namespace AS table_schema ON table_schema.oid OPERATOR(pg_catalog.=) "table".relnamespace
WHERE index_schema.nspname OPERATOR(pg_catalog.=) $1 AND index.relname OPERATOR(pg_catalog.=) $2
