-- Third of three: the server takes the validated check as proof, so that SET NOT NULL scans nothing.
--
-- Two statements, because one ALTER TABLE would drop the check before it looks for the proof.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    ALTER TABLE proxy_calls ALTER COLUMN created_at SET NOT NULL;
    ALTER TABLE proxy_calls DROP CONSTRAINT IF EXISTS proxy_calls_created_at_is_set;
END
$$;
