-- The numbers are lost; up.sql goes on above the highest one that an event holds.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    ALTER TABLE api_keys DROP COLUMN revision;
END
$$;
