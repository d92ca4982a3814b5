-- Answers which active keys of a tenant expire next, and how many keys have each status.
--
-- No index contains last_used_at, so recording a use is a HOT update, which writes to no index, if the page has room.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_status_expiry ON api_keys USING btree (tenant_id, status, expires_at, id);
