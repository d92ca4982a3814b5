DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    ALTER TABLE proxy_calls DROP CONSTRAINT IF EXISTS proxy_calls_cost_cents_is_a_number;
END
$$;
