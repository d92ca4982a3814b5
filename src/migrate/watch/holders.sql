-- The other sessions of this database that hold locks on the tables. With $2 only those that a concurrent index build
-- waits for: they can write to the tables or hold an old snapshot, and their transaction is older than $3 milliseconds.
-- Old snapshots count for any table, because the build waits for them. Autovacuum is left out, because it cancels
-- itself when another session waits for its lock.
SELECT pid, usename::pg_catalog.text AS "user", application_name AS application, state,
    coalesce(xact_start, state_change) AS since
FROM pg_catalog.pg_stat_activity AS session
WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
    AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
    AND backend_type OPERATOR(pg_catalog.<>) 'autovacuum worker'
    AND (
        EXISTS (
            SELECT FROM pg_catalog.pg_locks AS held
            WHERE held.pid OPERATOR(pg_catalog.=) session.pid
                AND held.granted
                AND held.relation OPERATOR(pg_catalog.=) ANY ($1)
                AND (NOT $2 OR held.mode OPERATOR(pg_catalog.<>) ALL ('{AccessShareLock,RowShareLock,ShareLock}'))
        )
        OR $2 AND backend_xmin IS NOT NULL
    )
    AND (
        NOT $2
        OR coalesce(
            (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) xact_start)
                OPERATOR(pg_catalog.>) ($3 OPERATOR(pg_catalog.*) interval '1 millisecond'),
            false
        )
    )
ORDER BY xact_start NULLS LAST, pid
