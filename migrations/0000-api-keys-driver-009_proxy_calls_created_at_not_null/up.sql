-- Third of three: the validated check proves that no row is NULL, so SET NOT NULL scans nothing.
--
-- Two statements, because a single ALTER TABLE would drop the check before it uses the proof.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    ALTER TABLE proxy_calls ALTER COLUMN created_at SET NOT NULL;
    ALTER TABLE proxy_calls DROP CONSTRAINT IF EXISTS proxy_calls_created_at_is_set;
END
$$;
