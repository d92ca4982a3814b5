-- The sessions that a session waits for. The server gives the pid 0 for a prepared transaction and does not say which one.
SELECT pid, usename::pg_catalog.text AS "user", application_name AS application, state,
    coalesce(xact_start, state_change) AS since, NULL AS prepared
FROM pg_catalog.pg_stat_activity
WHERE pid OPERATOR(pg_catalog.=) ANY (pg_catalog.pg_blocking_pids($1))
UNION ALL
SELECT 0, owner::pg_catalog.text, NULL, NULL, prepared, gid
FROM pg_catalog.pg_prepared_xacts
WHERE database OPERATOR(pg_catalog.=) pg_catalog.current_database()
    AND 0 OPERATOR(pg_catalog.=) ANY (pg_catalog.pg_blocking_pids($1))
ORDER BY pid, prepared
