-- Customers see a tenant's keys without the synthetic ones: a page and a count of those pass none of the others.
--
-- Partial, so that a look at a tenant whose newest 100,000 keys are synthetic costs what any other does.
-- It is written when a key is made, deleted or frozen, not when one is used.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_shown_newest_first ON api_keys USING btree (tenant_id, created_at DESC, id DESC)
    WHERE (NOT is_synthetic);
