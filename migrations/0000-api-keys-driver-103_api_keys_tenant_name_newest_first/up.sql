-- Engines look for a tenant's keys by their name: those of one name are read newest first, whatever the tenant's size.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_name_newest_first
    ON api_keys USING btree (tenant_id, name, created_at DESC, id DESC);
