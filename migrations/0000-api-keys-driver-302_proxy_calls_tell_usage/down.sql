-- Writes are no longer recorded. If it is applied again, existing calls are counted again.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    DROP TRIGGER proxy_calls_forget_usage ON proxy_calls;
    DROP TRIGGER proxy_calls_tell_usage ON proxy_calls;
    DROP TRIGGER proxy_calls_tell_late_insert ON proxy_calls;
    DROP FUNCTION proxy_calls_forget_usage();
    DROP FUNCTION proxy_calls_tell_usage();
END
$$;
