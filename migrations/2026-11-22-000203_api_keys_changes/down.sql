-- Changes are no longer recorded. Events that were recorded stay: see 000201.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    DROP TRIGGER api_key_events_notify ON api_key_events;
    DROP TRIGGER "~api_keys_tell_truncated" ON api_keys;
    DROP TRIGGER "~api_keys_tell_update" ON api_keys;
    DROP TRIGGER "~api_keys_tell" ON api_keys;
    DROP TRIGGER "~api_keys_number" ON api_keys;
    DROP FUNCTION api_key_events_notify();
    DROP FUNCTION api_keys_tell_truncated();
    DROP FUNCTION api_keys_tell();
    DROP FUNCTION api_keys_number();
END
$$;
