-- The tables $2 and functions $3 of the schema $1, the sequence of the usage and Diesel's table of applied migrations, if
-- they belong to an unrelated role: not to the current one, and not to one with the rights of the owner of api_keys or
-- proxy_calls. The search path is pg_catalog alone.
WITH home AS (
    SELECT oid FROM pg_namespace WHERE nspname = $1
), base AS (
    SELECT relowner
    FROM pg_class
    WHERE relnamespace = (SELECT oid FROM home) AND relname IN ('api_keys', 'proxy_calls') AND relkind IN ('r', 'p')
)
SELECT name, owner::regrole::text AS owner
FROM (
    SELECT
        CASE relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END || relname AS name,
        relowner AS owner
    FROM pg_class
    WHERE relnamespace = (SELECT oid FROM home)
        AND relname = ANY ($2 || '{usage_frontier,__diesel_schema_migrations}'::text[])
        AND relname NOT IN ('api_keys', 'proxy_calls')
    UNION ALL
    SELECT format('function %s()', proname), proowner
    FROM pg_proc
    WHERE pronamespace = (SELECT oid FROM home) AND proname = ANY ($3)
) AS made
WHERE pg_get_userbyid(owner) <> current_user
    AND NOT EXISTS (SELECT FROM base WHERE pg_has_role(made.owner, base.relowner, 'MEMBER'))
    AND NOT (SELECT rolsuper FROM pg_roles WHERE oid = made.owner)
ORDER BY 1
