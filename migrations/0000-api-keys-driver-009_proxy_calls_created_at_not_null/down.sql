-- The column stays NOT NULL if it is part of the primary key, as in a partitioned table.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_index
        JOIN pg_catalog.pg_attribute ON attrelid OPERATOR(pg_catalog.=) indrelid
            AND attnum OPERATOR(pg_catalog.=) ANY (indkey::pg_catalog.int2[])
        WHERE indrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('proxy_calls')
            AND indisprimary AND attname OPERATOR(pg_catalog.=) 'created_at'
    ) THEN
        ALTER TABLE proxy_calls ALTER COLUMN created_at DROP NOT NULL;
    END IF;
END
$$;
