-- The service's generator emits prefixes of 12 characters, and the column holds 10.
--
-- Widening a varchar changes the catalog only. A column that somebody widened already is left alone.
SET LOCAL lock_timeout = '5s';
DO $$
BEGIN
    IF (SELECT atttypmod - 4 < 12 AND atttypmod <> -1 FROM pg_attribute
        WHERE attrelid = 'api_keys'::regclass AND attname = 'key_prefix')
    THEN
        ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(12);
    END IF;
END
$$;
