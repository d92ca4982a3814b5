-- api_keys.created_at becomes NOT NULL in three steps, so that no step scans the table under a strong lock.
--
-- First of three: new rows are checked from here on. The lock is strong and short.
SET LOCAL lock_timeout = '5s';
ALTER TABLE api_keys ADD CONSTRAINT api_keys_created_at_is_set CHECK (created_at IS NOT NULL) NOT VALID;
