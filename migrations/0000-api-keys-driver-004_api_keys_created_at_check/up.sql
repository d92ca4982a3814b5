-- api_keys.created_at becomes NOT NULL in three steps, so that no step scans the table under a strong lock.
--
-- First of three: new rows are checked from now on. The strong lock lasts for milliseconds.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    IF EXISTS (
        SELECT FROM pg_catalog.pg_attribute
        WHERE attrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('api_keys')
            AND attname OPERATOR(pg_catalog.=) 'created_at' AND NOT attnotnull
    ) AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_constraint
        WHERE conrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('api_keys')
            AND conname OPERATOR(pg_catalog.=) 'api_keys_created_at_is_set'
    ) THEN
        ALTER TABLE api_keys ADD CONSTRAINT api_keys_created_at_is_set CHECK (created_at IS NOT NULL) NOT VALID;
    END IF;
END
$$;
