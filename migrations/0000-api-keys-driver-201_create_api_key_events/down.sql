-- Drops the tables only if there are no events, because a revert drops no rows.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    LOCK TABLE api_key_events;
    IF EXISTS (SELECT FROM api_key_events) THEN
        RAISE NOTICE 'api_key_events holds rows: it stays';
        RETURN;
    END IF;

    DROP TABLE api_key_events, api_key_events_compacted;
END
$$;
