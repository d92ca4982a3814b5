-- Customers see a tenant's keys without the synthetic ones. A page or a count of them reads no synthetic key.
--
-- Partial, so that a tenant whose newest 100,000 keys are synthetic costs no more than any other.
-- It is updated when a key is created, deleted or frozen, not when a key is used.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_shown_newest_first ON api_keys USING btree (tenant_id, created_at DESC, id DESC)
    WHERE (NOT is_synthetic);
