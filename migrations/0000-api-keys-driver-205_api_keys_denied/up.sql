-- A cache of the keys that may not be used first reads all of them, of all tenants, in the order of this index.
CREATE INDEX CONCURRENTLY ix_api_keys_denied ON api_keys USING btree (tenant_id, id) WHERE (is_frozen OR ((status)::pg_catalog.text OPERATOR(pg_catalog.<>) 'active'::pg_catalog.text));
