-- What the schema $1 holds under the names that the migrations give: tables $2 with their columns,
-- constraints, indexes and triggers, indexes $3, functions $4. A line each; `flaw` says what is wrong with
-- the object itself. The search path is pg_catalog alone. The functions that define an object answer NULL
-- for one that another session drops meanwhile. The cast of a column, which is shown for some types of columns only, is
-- left out. pg_partition_tree is not used, because it locks each partition.
WITH RECURSIVE home AS (
    SELECT oid, nspname FROM pg_namespace WHERE nspname = $1
), tables AS (
    SELECT class.oid, relname, relkind
    FROM pg_class AS class
    WHERE relnamespace = (SELECT oid FROM home) AND relname = ANY ($2)
        AND relkind IN ('r', 'p', 'v', 'm', 'f')
), domains AS (
    SELECT pg_type.oid, typbasetype AS base_type, typtypmod AS length, typnotnull AS is_not_null
    FROM pg_type
    WHERE typtype = 'd' AND pg_type.oid IN (SELECT atttypid FROM tables JOIN pg_attribute ON attrelid = tables.oid)
    UNION ALL
    SELECT domains.oid, typbasetype, typtypmod, is_not_null OR typnotnull
    FROM domains
    JOIN pg_type ON pg_type.oid = base_type AND typtype = 'd'
), tree AS (
    -- The partitions, and the parts of an index $3.
    SELECT class.oid AS root, class.oid AS relid
    FROM pg_class AS class
    WHERE relnamespace = (SELECT oid FROM home) AND relkind IN ('p', 'I') AND relname = ANY ($2 || $3)
    UNION ALL
    SELECT root, inhrelid FROM tree JOIN pg_inherits ON inhparent = relid WHERE NOT inhdetachpending
), parts AS (
    SELECT root, relid, relname, relkind FROM tree JOIN pg_class ON pg_class.oid = relid WHERE relkind IN ('r', 'i')
)
SELECT kind, "table", name, coalesce(definition, '') AS definition, coalesce(flaw, '') AS flaw
FROM (
SELECT 'table' AS kind, relname::text AS "table", relname::text AS name, relkind::text AS definition, '' AS flaw
FROM tables

UNION ALL
-- A column of a domain has its base type, in which the server sends it.
SELECT 'column', relname::text, attname::text,
    format_type(coalesce(base_type, atttypid), coalesce(length, atttypmod))
        || CASE WHEN attnotnull OR is_not_null THEN ' NOT NULL' ELSE '' END
        || CASE WHEN attidentity <> '' THEN ' IDENTITY' WHEN attgenerated <> '' THEN ' GENERATED' ELSE '' END
        || coalesce(' DEFAULT ' || pg_get_expr(adbin, adrelid), ''),
    CASE WHEN base_type IS NOT NULL THEN format_type(atttypid, atttypmod) END
FROM tables
JOIN pg_attribute ON attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
LEFT JOIN domains ON domains.oid = atttypid
    AND (SELECT typtype FROM pg_type WHERE pg_type.oid = base_type) <> 'd'

UNION ALL
SELECT 'constraint', relname::text, conname::text,
    regexp_replace(
        regexp_replace(pg_get_constraintdef(pg_constraint.oid), ' NOT VALID$', ''),
        '\(((?:(?:new|old)\.)?\w+)\)::(?:text|numeric|timestamp with time zone)', '\1', 'g'
    ),
    CASE WHEN convalidated THEN '' ELSE 'not validated' END
FROM tables
JOIN pg_constraint ON conrelid = tables.oid AND contype IN ('c', 'p', 'u', 'x')

UNION ALL
SELECT 'index', coalesce("table".relname, '')::text, index.relname::text,
    CASE
        WHEN indexrelid IS NULL THEN 'no index'
        ELSE CASE WHEN NOT indimmediate THEN 'DEFERRABLE ' ELSE '' END
            || CASE WHEN indisunique THEN 'UNIQUE ' ELSE '' END
            || regexp_replace(regexp_replace(
                substr(pg_get_indexdef(indexrelid), 1 + length(format(
                    'CREATE %sINDEX %I ON %s%I.%I ',
                    CASE WHEN indisunique THEN 'UNIQUE ' END,
                    index.relname,
                    CASE WHEN index.relkind = 'I' THEN 'ONLY ' END,
                    home.nspname,
                    "table".relname
                ))),
                ' WITH \([^()]*\)', ''
            ), '\(((?:(?:new|old)\.)?\w+)\)::(?:text|numeric|timestamp with time zone)', '\1', 'g')
    END,
    CASE
        WHEN indexrelid IS NULL THEN ''
        -- The index of a partitioned table is as good as its parts. Foreign partitions have none.
        WHEN index.relkind = 'I' THEN coalesce((
            SELECT 'partition ' || string_agg(format('%I', part.relname), ', ' ORDER BY part.relname) || ' lacks it'
            FROM parts AS part
            WHERE part.root = indrelid AND NOT EXISTS (
                SELECT FROM parts AS attached
                JOIN pg_index AS attached_index ON attached_index.indexrelid = attached.relid
                WHERE attached.root = index.oid AND attached_index.indrelid = part.relid
                    AND attached_index.indisvalid AND attached_index.indisready
            )
        ), '')
        WHEN NOT (indisvalid AND indisready AND indislive) THEN 'invalid'
        ELSE ''
    END
FROM home
JOIN pg_class AS index ON index.relnamespace = home.oid
LEFT JOIN pg_index ON indexrelid = index.oid
LEFT JOIN pg_class AS "table" ON "table".oid = indrelid
WHERE index.relname = ANY ($3)

UNION ALL
SELECT 'trigger', relname::text, tgname::text,
    replace(
        replace(
            -- In one line, and a sequence that is named in a condition without its schema.
            regexp_replace(
                regexp_replace(
                    regexp_replace(pg_get_triggerdef(pg_trigger.oid), '\s+', ' ', 'g'),
                    '\(((?:(?:new|old)\.)?\w+)\)::(?:text|numeric|timestamp with time zone)', '\1', 'g'
                ),
                '''("([^"]|"")+"|\w+)\.(\w+)''::regclass', '''\3''::regclass', 'g'
            ),
            format(' ON %I.%I ', home.nspname, relname), format(' ON %I ', relname)
        ),
        format(' EXECUTE FUNCTION %I.', home.nspname), ' EXECUTE FUNCTION '
    ),
    CASE tgenabled
        WHEN 'D' THEN 'disabled'
        WHEN 'R' THEN 'enabled on replicas only'
        -- Each partition has its own copy of a row trigger, which can be disabled by itself.
        ELSE coalesce((
            SELECT 'disabled on ' || string_agg(format('%I', part.relname), ', ' ORDER BY part.relname)
            FROM tree
            JOIN pg_class AS part ON part.oid = tree.relid AND part.relkind IN ('r', 'f')
            WHERE tree.root = tables.oid AND tgtype & 1 = 1 AND NOT EXISTS (
                SELECT FROM pg_trigger AS of_part
                WHERE of_part.tgrelid = part.oid AND of_part.tgparentid <> 0
                    AND of_part.tgfoid = pg_trigger.tgfoid AND of_part.tgtype = pg_trigger.tgtype
                    AND of_part.tgenabled IN ('O', 'A')
            )
        ), '')
    END
FROM home, tables
JOIN pg_trigger ON tgrelid = tables.oid AND NOT tgisinternal AND tgparentid = 0

UNION ALL
-- Triggers of others that change a key after the crate's trigger compared it. Each is BEFORE, FOR EACH ROW, and fires
-- on INSERT or UPDATE.
SELECT 'late_trigger', relname::text, tgname::text, '', ''
FROM tables
JOIN pg_trigger ON tgrelid = tables.oid
WHERE relname = 'api_keys' AND tgtype & 3 = 3 AND tgtype & 20 <> 0 AND tgenabled IN ('O', 'A')
    AND tgname > '~api_keys_compare' AND tgname NOT IN ('~api_keys_number', '~api_keys_number_update')

UNION ALL
SELECT 'function', '', proname::text,
    -- The body counts without its qualifiers and the schema's name, which differ from schema to schema.
    format(
        '(%s) %s %s%s%s %s', pg_get_function_identity_arguments(pg_proc.oid), prorettype::regtype, lanname,
        CASE WHEN prosecdef THEN ' SECURITY DEFINER' END,
        ' ' || replace(array_to_string(proconfig, ' '), format('search_path=%I,', nspname), 'search_path=home,'),
        left(encode(sha256(textsend(
            regexp_replace(replace(prosrc, quote_literal(nspname), '''home'''), '("([^"]|"")+"|\w+)\.', '', 'g')
        )), 'hex'), 16)
    ),
    ''
FROM home
JOIN pg_proc ON pronamespace = home.oid
JOIN pg_language ON pg_language.oid = prolang
WHERE proname = ANY ($4) AND pronargs = 0
) AS objects
ORDER BY 1, 2, 3, 4
