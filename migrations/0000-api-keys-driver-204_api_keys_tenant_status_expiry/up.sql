-- Which active keys expire next is a range of this index, and how many keys have which status a prefix of it.
--
-- last_used_at is in no index on purpose: where its page has room, recording a use then writes to no index.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_status_expiry ON api_keys USING btree (tenant_id, status, expires_at, id);
