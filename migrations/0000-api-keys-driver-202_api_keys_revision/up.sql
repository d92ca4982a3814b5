-- Numbers the changes of a key, so that a reader with two versions of it can tell which one is newer.
--
-- A constant default changes only the catalog, and writers that do not know the column continue to work. Existing keys
-- start at 0, and new keys at 1. After a revert, existing keys start after the highest revision of the events that the
-- revert kept, so that later changes have higher revisions.
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
