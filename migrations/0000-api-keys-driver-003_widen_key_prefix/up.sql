-- The service's generator emits prefixes of 12 characters, and the column holds 10.
--
-- Widening a varchar changes the catalog only. A column that is wide enough is not changed: changing a type
-- invalidates the statements that other sessions have prepared. `migrate` skips the step if a view, a policy or
-- the like depends on the column: PostgreSQL would refuse it.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    IF EXISTS (
        SELECT FROM pg_catalog.pg_attribute
        WHERE attrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('api_keys')
            AND attname OPERATOR(pg_catalog.=) 'key_prefix'
            AND atttypmod OPERATOR(pg_catalog.<>) -1
            AND (atttypmod OPERATOR(pg_catalog.-) 4) OPERATOR(pg_catalog.<) 12
    ) THEN
        ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(12);
    END IF;
END
$$;
