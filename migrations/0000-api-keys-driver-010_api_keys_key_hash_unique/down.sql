DROP INDEX CONCURRENTLY uq_api_keys_key_hash;
