-- Properties of the session and of its database. The search path is pg_catalog alone.
SELECT current_database()::text AS database,
    current_user::text AS role,
    current_setting('default_transaction_read_only') = 'on' AS is_read_only,
    pg_is_in_recovery() AS is_standby,
    current_setting('lc_messages') AS messages,
    current_setting('server_encoding') AS encoding,
    current_setting('session_replication_role') AS replication_role,
    has_schema_privilege($1, 'CREATE') AS may_create,
    (SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = $1)::text AS schema_owner
