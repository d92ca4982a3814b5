-- The session that holds the lock between migrators. pg_locks shows a bigint key as two halves.
SELECT session.pid, usename::pg_catalog.text AS "user", application_name AS application, state,
    coalesce(xact_start, state_change) AS since, NULL AS prepared
FROM pg_catalog.pg_locks AS held
JOIN pg_catalog.pg_stat_activity AS session ON session.pid OPERATOR(pg_catalog.=) held.pid
WHERE held.locktype OPERATOR(pg_catalog.=) 'advisory'
    AND held.granted
    AND held.objsubid OPERATOR(pg_catalog.=) 1
    AND held.database OPERATOR(pg_catalog.=) (
        SELECT oid FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
    )
    AND (held.classid::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32) OPERATOR(pg_catalog.|) held.objid::pg_catalog.int8
        OPERATOR(pg_catalog.=) $1
