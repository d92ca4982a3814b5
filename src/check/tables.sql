-- What the current role may do with the tables $2 of the schema $1 and with the sequence of the usage, and what the
-- server does with them.
WITH RECURSIVE tree AS (
    SELECT class.oid AS root, class.oid AS relid
    FROM pg_class AS class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname = ANY ($2)
    UNION ALL
    SELECT root, inhrelid FROM tree JOIN pg_inherits ON inhparent = relid WHERE NOT inhdetachpending
)
SELECT relname::text AS name,
    pg_get_userbyid(relowner)::text AS owner,
    pg_has_role(relowner, 'USAGE') AS is_owner,
    pg_has_role(relowner, CASE WHEN grants_have_options THEN 'SET' ELSE 'MEMBER' END) AS may_set_role,
    concat(
        format('GRANT %I TO %I', pg_get_userbyid(relowner), current_user),
        -- A grant that exists keeps the options that are not named.
        CASE WHEN grants_have_options THEN ' WITH INHERIT TRUE, SET TRUE' END
    ) AS grant_of_owner,
    row_security_active(class.oid) AS has_hidden_rows,
    publications,
    -- What PostgreSQL checks is the partition.
    ARRAY(
        SELECT part.oid::regclass::text
        FROM tree
        JOIN pg_class AS part ON part.oid = relid AND part.relkind = 'r'
        WHERE root = class.oid AND sends_changes AND part.relreplident <> 'f' AND NOT EXISTS (
            SELECT FROM pg_index
            WHERE indrelid = part.oid AND indisvalid
                AND (part.relreplident = 'd' AND indisprimary OR part.relreplident = 'i' AND indisreplident)
        )
        ORDER BY 1
    ) AS without_identity,
    ARRAY(
        SELECT indexrelid::regclass::text
        FROM pg_index
        WHERE indrelid = class.oid AND indisunique AND indimmediate AND indisvalid
            AND indpred IS NULL AND indexprs IS NULL
            -- A server that is sharded by tenant needs the tenant in it.
            AND (
                SELECT bool_or(attname = 'id') AND bool_and(attname IN ('id', 'tenant_id'))
                FROM pg_attribute
                WHERE attrelid = class.oid AND attnum = ANY ((indkey::int2[])[0:indnkeyatts - 1])
            )
    ) AS unique_ids,
    ARRAY(
        SELECT rulename::text
        FROM pg_rewrite
        WHERE ev_class = class.oid AND ev_type IN ('2', '3', '4') AND ev_enabled IN ('O', 'A')
        ORDER BY 1
    ) AS rules,
    ARRAY(
        SELECT inhrelid::regclass::text
        FROM pg_inherits
        WHERE inhparent = class.oid AND relkind = 'r'
        ORDER BY 1
    ) AS children,
    ARRAY(
        SELECT privilege
        FROM unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS privilege
        WHERE has_table_privilege(class.oid, privilege)
            OR privilege <> 'DELETE' AND has_any_column_privilege(class.oid, privilege)
    ) AS privileges,
    ARRAY(
        SELECT concat(privilege, ' ', attname)
        FROM pg_attribute, unnest('{SELECT,UPDATE}'::text[]) AS privilege
        WHERE attrelid = class.oid AND attnum > 0 AND NOT attisdropped
            AND has_column_privilege(class.oid, attnum, privilege)
    ) AS column_privileges
FROM pg_class AS class
JOIN pg_namespace ON pg_namespace.oid = relnamespace
CROSS JOIN (SELECT current_setting('server_version_num')::int >= 160000 AS grants_have_options) AS server
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(pubname::text ORDER BY pubname), '{}') AS publications,
        coalesce(bool_or(pubupdate OR pubdelete), false) AS sends_changes
    FROM pg_publication
    WHERE puballtables
        OR EXISTS (SELECT FROM pg_publication_rel WHERE prpubid = pg_publication.oid AND prrelid = class.oid)
        OR EXISTS (SELECT FROM pg_publication_namespace WHERE pnpubid = pg_publication.oid AND pnnspid = relnamespace)
) AS publication
WHERE nspname = $1
    AND (relname = ANY ($2) AND relkind IN ('r', 'p') OR relname = 'usage_frontier' AND relkind = 'S')
ORDER BY relname
