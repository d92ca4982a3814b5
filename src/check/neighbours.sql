-- What else affects the database: transactions that have been open for long, extensions that change how tables work,
-- and event triggers, which may refuse or change what a migration does. The functions behind pg_stat_activity and
-- pg_prepared_xacts, because a new session takes milliseconds to plan the views.
SELECT 'transaction' AS kind,
    format(
        'pid %s, user %s, application %s, %s since %s', pid, pg_get_userbyid(usesysid), application_name, state,
        to_char(xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')
    ) AS name,
    format('SELECT pg_terminate_backend(%s)', pid) AS action
FROM pg_stat_get_activity(NULL)
WHERE datid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    AND xact_start < clock_timestamp() - interval '10 seconds'
UNION ALL
SELECT 'prepared transaction', gid, format('ROLLBACK PREPARED %L', gid)
FROM pg_prepared_xact()
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND prepared < clock_timestamp() - interval '10 seconds'
UNION ALL
SELECT 'extension', extname, ''
FROM pg_extension
WHERE extname IN ('citus', 'timescaledb')
UNION ALL
SELECT 'event trigger', evtname, format('ALTER EVENT TRIGGER %I DISABLE', evtname)
FROM pg_event_trigger
WHERE evtenabled IN ('O', 'A') AND evtevent <> 'login'
ORDER BY 1, 2
