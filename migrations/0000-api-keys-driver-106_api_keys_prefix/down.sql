DROP INDEX CONCURRENTLY ix_api_keys_prefix;
