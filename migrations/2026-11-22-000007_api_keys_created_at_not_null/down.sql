SET LOCAL lock_timeout = '5s';
ALTER TABLE api_keys
    ALTER COLUMN created_at DROP NOT NULL,
    ADD CONSTRAINT api_keys_created_at_is_set CHECK (created_at IS NOT NULL) NOT VALID;
