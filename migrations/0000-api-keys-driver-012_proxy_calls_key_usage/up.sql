-- The usage of a key since a moment is one range of an index-only scan, which does not read the wide rows.
CREATE INDEX CONCURRENTLY ix_proxy_calls_key_usage ON proxy_calls USING btree (tenant_id, api_key_id, created_at)
    INCLUDE (cost_cents);
