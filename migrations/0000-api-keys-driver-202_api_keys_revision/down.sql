-- The revisions are lost. If it is applied again, revisions continue after the highest one in the events.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    ALTER TABLE api_keys DROP COLUMN revision;
END
$$;
