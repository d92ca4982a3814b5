SET LOCAL lock_timeout = '5s';
ALTER TABLE api_keys DROP CONSTRAINT api_keys_created_at_is_set;
