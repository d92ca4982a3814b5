-- A tenant's keys, newest first, are read in the order of this index, so a list of any size needs no sort.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_newest_first ON api_keys USING btree (tenant_id, created_at DESC, id DESC);
