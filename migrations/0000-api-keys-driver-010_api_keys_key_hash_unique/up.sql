-- A secret belongs to one key: with two rows of one hash, a lookup could find either.
CREATE UNIQUE INDEX CONCURRENTLY uq_api_keys_key_hash ON api_keys USING btree (key_hash);
