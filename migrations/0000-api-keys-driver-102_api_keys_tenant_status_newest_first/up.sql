-- Customers see a tenant's keys of one status. A page or a count of them reads no key of another status.
--
-- Partial like the index without a status, and updated as rarely.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_status_newest_first
    ON api_keys USING btree (tenant_id, status, created_at DESC, id DESC) WHERE (NOT is_synthetic);
