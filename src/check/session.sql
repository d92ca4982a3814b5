-- Properties of the session, of its database and of the schema $1. The search path is pg_catalog alone.
WITH owner AS (
    SELECT relowner AS oid, pg_get_userbyid(relowner)::text AS name, nspacl
    FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname IN ('api_keys', 'proxy_calls') AND relkind IN ('r', 'p')
)
SELECT current_database()::text AS database,
    current_user::text AS role,
    current_setting('default_transaction_read_only') = 'on' AS is_read_only,
    pg_is_in_recovery() AS is_standby,
    current_setting('lc_messages') AS messages,
    current_setting('server_encoding') AS encoding,
    current_setting('session_replication_role') AS replication_role,
    has_schema_privilege($1, 'CREATE') AS may_create,
    -- The owners of the tables to which the current role cannot give new objects of the schema.
    ARRAY(
        SELECT DISTINCT name
        FROM owner
        WHERE name <> current_user AND NOT has_schema_privilege(owner.oid, $1, 'CREATE')
            AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
    ) AS owners_without_create,
    -- The owners of the tables that may not use the schema. The triggers run with their rights.
    ARRAY(
        SELECT DISTINCT name FROM owner WHERE NOT has_schema_privilege(owner.oid, $1, 'USAGE')
    ) AS owners_without_usage,
    -- The roles that may create objects in the schema and are no owner's. PostgreSQL 14 gives that right to PUBLIC in
    -- the schema public.
    ARRAY(
        SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
        FROM owner, aclexplode(nspacl)
        WHERE privilege_type = 'CREATE'
            AND grantee <> (SELECT nspowner FROM pg_namespace WHERE nspname = $1)
            AND NOT (grantee = 0 AND $1 = 'public' AND current_setting('server_version_num')::int < 150000)
            AND (grantee = 0 OR NOT EXISTS (
                SELECT FROM owner AS related WHERE pg_has_role(grantee, related.oid, 'MEMBER')
            ))
    ) AS other_creators,
    (SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = $1)::text AS schema_owner,
    quote_ident($1) AS quoted_schema,
    -- No right is needed for the tablespace of the database.
    (
        SELECT spcname::text
        FROM pg_tablespace
        WHERE spcname = current_setting('default_tablespace') AND NOT has_tablespace_privilege(oid, 'CREATE')
            AND oid <> (SELECT dattablespace FROM pg_database WHERE datname = current_database())
    ) AS closed_tablespace
