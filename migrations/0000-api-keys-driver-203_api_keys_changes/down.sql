-- Changes are no longer recorded. Events that were recorded stay: see create_api_key_events.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    DROP TRIGGER IF EXISTS api_key_events_notify ON api_key_events;
    DROP TRIGGER IF EXISTS "~api_keys_tell_truncated" ON api_keys;
    DROP TRIGGER IF EXISTS "~api_keys_tell_update" ON api_keys;
    DROP TRIGGER IF EXISTS "~api_keys_tell" ON api_keys;
    DROP TRIGGER IF EXISTS "~api_keys_number_update" ON api_keys;
    DROP TRIGGER IF EXISTS "~api_keys_number" ON api_keys;
    DROP TRIGGER IF EXISTS "~api_keys_compare" ON api_keys;
    DROP FUNCTION IF EXISTS api_key_events_notify();
    DROP FUNCTION IF EXISTS api_keys_tell_truncated();
    DROP FUNCTION IF EXISTS api_keys_tell();
    DROP FUNCTION IF EXISTS api_keys_number();
    DROP FUNCTION IF EXISTS api_keys_compare();
END
$$;
