-- Changes are no longer recorded. Events that were recorded stay: see 000201.
SET LOCAL lock_timeout = '5s';
DROP TRIGGER api_keys_append_events_of_update ON api_keys;
DROP TRIGGER api_keys_append_events ON api_keys;
DROP TRIGGER api_keys_raise_revision ON api_keys;
DROP FUNCTION api_keys_append_events();
DROP FUNCTION api_keys_raise_revision();
