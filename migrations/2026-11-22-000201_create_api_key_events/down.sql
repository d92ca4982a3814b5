-- Drops the table only where it holds no row: rows are not ours to drop.
SET LOCAL lock_timeout = '5s';
DO $$
BEGIN
    LOCK TABLE api_key_events;
    IF EXISTS (SELECT FROM api_key_events) THEN
        RAISE NOTICE 'api_key_events holds rows: it stays';
        RETURN;
    END IF;

    DROP TABLE api_key_events;
END
$$;
