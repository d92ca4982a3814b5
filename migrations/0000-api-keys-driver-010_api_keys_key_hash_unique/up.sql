-- A secret names one key: two rows with one hash would let a look-up recognise either.
CREATE UNIQUE INDEX CONCURRENTLY uq_api_keys_key_hash ON api_keys USING btree (key_hash);
