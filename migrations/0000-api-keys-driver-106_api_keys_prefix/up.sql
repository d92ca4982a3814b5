-- The person on call has the first characters of a leaked secret and does not know the tenant.
--
-- The existing index on key_prefix is in the order of the database's collation, which does not keep texts with the
-- same beginning together.
CREATE INDEX CONCURRENTLY ix_api_keys_prefix
    ON api_keys USING btree (key_prefix pg_catalog.text_pattern_ops, created_at DESC, id DESC);
