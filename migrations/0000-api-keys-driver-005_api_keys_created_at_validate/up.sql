-- Second of three: existing rows are checked. Reads and writes continue.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    IF EXISTS (
        SELECT FROM pg_catalog.pg_constraint
        WHERE conrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('api_keys')
            AND conname OPERATOR(pg_catalog.=) 'api_keys_created_at_is_set'
    ) THEN
        ALTER TABLE api_keys VALIDATE CONSTRAINT api_keys_created_at_is_set;
    END IF;
END
$$;
