-- Drops the table only if this crate created it and it holds no row.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    IF (
        pg_catalog.obj_description(pg_catalog.to_regclass('api_keys'), 'pg_class')
            OPERATOR(pg_catalog.=) 'Created by api_keys_driver.'
    ) IS NOT TRUE THEN
        RAISE NOTICE 'api_keys was not created by api_keys_driver: it stays';
        RETURN;
    END IF;

    LOCK TABLE api_keys;
    IF EXISTS (SELECT FROM api_keys) THEN
        RAISE NOTICE 'api_keys holds rows: it stays';
        RETURN;
    END IF;

    DROP TABLE api_keys;
END
$$;
