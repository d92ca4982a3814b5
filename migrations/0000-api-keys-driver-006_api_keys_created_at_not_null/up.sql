-- Third of three: the server takes the validated check as proof, so that SET NOT NULL scans nothing.
--
-- Two statements, because one ALTER TABLE would drop the check before it looks for the proof.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    ALTER TABLE api_keys ALTER COLUMN created_at SET NOT NULL;
    ALTER TABLE api_keys DROP CONSTRAINT IF EXISTS api_keys_created_at_is_set;
END
$$;
