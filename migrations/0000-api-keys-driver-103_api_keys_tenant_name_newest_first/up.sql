-- Engines find a tenant's keys by their name. The keys of one name are read newest first, for a tenant of any size.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_name_newest_first
    ON api_keys USING btree (tenant_id, name, created_at DESC, id DESC);
