-- The usage of a key since a moment is one index-only range: calls and their cost, without the wide rows.
CREATE INDEX CONCURRENTLY ix_proxy_calls_key_usage ON proxy_calls USING btree (tenant_id, api_key_id, created_at)
    INCLUDE (cost_cents);
