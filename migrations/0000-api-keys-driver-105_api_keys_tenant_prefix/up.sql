-- Engines find a tenant's keys by the first characters of the secret, which are a range of this index.
--
-- text_pattern_ops, because the order of most collations does not keep texts with the same beginning together. With the
-- other columns the server selects a page from the index, without the rows.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_prefix
    ON api_keys USING btree (tenant_id, key_prefix pg_catalog.text_pattern_ops, created_at DESC, id DESC);
