-- Engines find a tenant's keys by the user who requested them, newest first.
--
-- Partial: most keys of many services have no user.
CREATE INDEX CONCURRENTLY ix_api_keys_tenant_user_newest_first
    ON api_keys USING btree (tenant_id, user_id, created_at DESC, id DESC) WHERE (user_id IS NOT NULL);
