-- The first statement that a migrator sends: it works on any server, and names nothing without its schema.
SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4 AS version_number,
    pg_catalog.current_setting('server_version') AS version,
    pg_catalog.current_schemas(false)::pg_catalog.text[] AS path,
    pg_catalog.current_setting('search_path') AS search_path,
    pg_catalog.current_setting('lc_messages') AS messages,
    pg_catalog.now() AS transaction_began,
    ARRAY(
        SELECT pg_catalog.current_setting(name, true)
        FROM pg_catalog.unnest($1) WITH ORDINALITY AS asked (name, nth)
        ORDER BY nth
    ) AS settings
