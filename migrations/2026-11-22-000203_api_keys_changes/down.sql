-- Changes are no longer recorded. Events that were recorded stay: see 000201.
SET LOCAL lock_timeout = '5s';
DROP TRIGGER api_keys_revision ON api_keys;
DROP TRIGGER api_keys_event_1_inserted ON api_keys;
DROP TRIGGER api_keys_event_2_frozen ON api_keys;
DROP TRIGGER api_keys_event_3_unfrozen ON api_keys;
DROP TRIGGER api_keys_event_4_revoked ON api_keys;
DROP TRIGGER api_keys_event_5_expiry_set ON api_keys;
DROP TRIGGER api_keys_event_6_changed ON api_keys;
DROP TRIGGER api_keys_event_7_deleted ON api_keys;
DROP FUNCTION api_keys_append_event();
DROP FUNCTION api_keys_raise_revision();
