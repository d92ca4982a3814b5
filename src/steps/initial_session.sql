-- The first statement that a migrator sends: it works on any server, and names nothing without its schema.
SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4 AS version_number,
    pg_catalog.current_setting('server_version') AS version,
    -- Without those of the server and of the session's temporary tables, which a search path may name too.
    ARRAY(
        SELECT schema::pg_catalog.text
        FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS path (schema, nth)
        WHERE schema OPERATOR(pg_catalog.!~) '^pg_' AND schema OPERATOR(pg_catalog.<>) 'information_schema'
        ORDER BY nth
    ) AS path,
    pg_catalog.current_setting('search_path') AS search_path,
    pg_catalog.current_setting('lc_messages') AS messages,
    pg_catalog.now() AS transaction_began,
    ARRAY(
        SELECT pg_catalog.current_setting(name, true)
        FROM pg_catalog.unnest($1) WITH ORDINALITY AS asked (name, nth)
        ORDER BY nth
    ) AS settings
