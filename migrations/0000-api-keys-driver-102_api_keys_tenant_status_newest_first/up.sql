-- Customers see a tenant's keys of one status: a page and a count of those pass none of another status.
--
-- Partial like the index without a status, and written as seldom.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_status_newest_first
    ON api_keys USING btree (tenant_id, status, created_at DESC, id DESC) WHERE (NOT is_synthetic);
