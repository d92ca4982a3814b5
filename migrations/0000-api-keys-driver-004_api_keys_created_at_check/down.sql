DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    ALTER TABLE api_keys DROP CONSTRAINT IF EXISTS api_keys_created_at_is_set;
END
$$;
