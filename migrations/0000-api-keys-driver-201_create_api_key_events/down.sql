-- Drops the tables only where no event is left: rows are not ours to drop.
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
