SET LOCAL lock_timeout = '5s';
ALTER TABLE proxy_calls
    ALTER COLUMN created_at DROP NOT NULL,
    ADD CONSTRAINT proxy_calls_created_at_is_set CHECK (created_at IS NOT NULL) NOT VALID;
