-- A reader who knows a key from two sources needs to tell the newer one: each change gets a number.
--
-- A constant default changes the catalog only, and is what keeps writers going that do not know the
-- column. Keys that are there begin at 0, and a new one at 1. After a revert and a new start they begin
-- above the events that stayed behind, so that what comes then is newer than what was.
SET LOCAL lock_timeout = '5s';
DO $$
DECLARE
    first bigint := (SELECT coalesce(max(revision) + 1, 0) FROM api_key_events);
BEGIN
    EXECUTE format('ALTER TABLE api_keys ADD COLUMN revision bigint NOT NULL DEFAULT %s', first);
END
$$;
ALTER TABLE api_keys ALTER COLUMN revision SET DEFAULT 1;
