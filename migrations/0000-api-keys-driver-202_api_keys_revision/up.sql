-- A reader who knows a key from two sources needs to tell the newer one: each change gets a number.
--
-- A constant default changes the catalog only, and is what keeps writers going that do not know the
-- column. Keys that are there begin at 0, and a new one at 1. After a revert and a new start they begin
-- above the events that stayed behind, so that what comes then is newer than what was.
DO $$
DECLARE
    home pg_catalog.text := (
        SELECT nspname FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('api_keys')
    );
    first pg_catalog.int8;
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    -- Fails loudly where a policy would hide events from this role.
    PERFORM pg_catalog.set_config('row_security', 'off', true);
    EXECUTE pg_catalog.format(
        'SELECT greatest((SELECT pg_catalog.max(revision) OPERATOR(pg_catalog.+) 1::pg_catalog.int8 FROM %1$I.api_key_events),
                         (SELECT revision FROM %1$I.api_key_events_compacted), 0)',
        home
    ) INTO first;
    EXECUTE pg_catalog.format(
        'ALTER TABLE %I.api_keys ADD COLUMN revision pg_catalog.int8 NOT NULL DEFAULT %s', home, first
    );
    EXECUTE pg_catalog.format('ALTER TABLE %I.api_keys ALTER COLUMN revision SET DEFAULT 1', home);
END
$$;
