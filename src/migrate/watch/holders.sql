-- The other sessions and the prepared transactions of this database that hold locks on the tables. With $2 only those that
-- a concurrent index build waits for: they can write to the tables or hold an old snapshot, and their transaction is
-- older than $3 milliseconds. Old snapshots count for any table, because the build waits for them, except those of VACUUM.
-- Autovacuum is left out, because it cancels itself when another session waits for its lock.
WITH held AS (
    SELECT pid, virtualtransaction
    FROM pg_catalog.pg_locks
    WHERE granted
        AND relation OPERATOR(pg_catalog.=) ANY ($1)
        AND database OPERATOR(pg_catalog.=) (
            SELECT oid FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
        )
        AND (NOT $2 OR mode OPERATOR(pg_catalog.<>) ALL ('{AccessShareLock,RowShareLock,ShareLock}'))
), holders AS (
    SELECT pid, usename::pg_catalog.text AS "user", application_name AS application, state,
        coalesce(xact_start, state_change) AS since, xact_start AS began, NULL AS prepared
    FROM pg_catalog.pg_stat_activity AS session
    WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
        AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
        AND backend_type OPERATOR(pg_catalog.<>) 'autovacuum worker'
        AND (
            EXISTS (SELECT FROM held WHERE held.pid OPERATOR(pg_catalog.=) session.pid)
            OR $2 AND backend_xmin IS NOT NULL AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_stat_progress_vacuum AS vacuum
                WHERE vacuum.pid OPERATOR(pg_catalog.=) session.pid
            )
        )
    UNION ALL
    SELECT 0, owner::pg_catalog.text, NULL, NULL, prepared, prepared, gid
    FROM pg_catalog.pg_prepared_xacts
    WHERE database OPERATOR(pg_catalog.=) pg_catalog.current_database()
        AND EXISTS (
            SELECT FROM held
            JOIN pg_catalog.pg_locks AS own
                ON own.virtualtransaction OPERATOR(pg_catalog.=) held.virtualtransaction
            WHERE held.pid IS NULL AND own.pid IS NULL AND own.transactionid OPERATOR(pg_catalog.=) transaction
        )
)
SELECT pid, "user", application, state, since, prepared
FROM holders
WHERE NOT $2
    OR coalesce(
        (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) began)
            OPERATOR(pg_catalog.>) ($3 OPERATOR(pg_catalog.*) interval '1 millisecond'),
        false
    )
ORDER BY began NULLS LAST, pid, prepared
