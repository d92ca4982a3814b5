-- A tenant's keys, newest first, are read in the order of this index: no sort, whatever the tenant's size.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_newest_first ON api_keys USING btree (tenant_id, created_at DESC, id DESC);
