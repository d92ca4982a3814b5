-- Second of three: existing rows are checked. Reads and writes continue.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    IF EXISTS (
        SELECT FROM pg_catalog.pg_constraint
        WHERE conrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('proxy_calls')
            AND conname OPERATOR(pg_catalog.=) 'proxy_calls_created_at_is_set'
    ) THEN
        ALTER TABLE proxy_calls VALIDATE CONSTRAINT proxy_calls_created_at_is_set;
    END IF;
END
$$;
