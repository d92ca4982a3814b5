DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    ALTER TABLE proxy_calls DROP CONSTRAINT IF EXISTS proxy_calls_created_at_is_set;
END
$$;
