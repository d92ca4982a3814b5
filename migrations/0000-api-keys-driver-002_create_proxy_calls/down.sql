-- Drops the table only if this crate created it and it holds no row.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    IF (
        pg_catalog.obj_description(pg_catalog.to_regclass('proxy_calls'), 'pg_class')
            OPERATOR(pg_catalog.=) 'Created by api_keys_driver.'
    ) IS NOT TRUE THEN
        RAISE NOTICE 'proxy_calls was not created by api_keys_driver: it stays';
        RETURN;
    END IF;

    LOCK TABLE proxy_calls;
    IF EXISTS (SELECT FROM proxy_calls) THEN
        RAISE NOTICE 'proxy_calls holds rows: it stays';
        RETURN;
    END IF;

    DROP TABLE proxy_calls;
END
$$;
