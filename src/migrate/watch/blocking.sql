-- The sessions that a session waits for.
SELECT pid, usename::pg_catalog.text AS "user", application_name AS application, state,
    coalesce(xact_start, state_change) AS since
FROM pg_catalog.pg_stat_activity
WHERE pid OPERATOR(pg_catalog.=) ANY (pg_catalog.pg_blocking_pids($1))
ORDER BY pid
