-- Second of three: the rows that were there before are checked. Reads and writes go on meanwhile.
SET LOCAL lock_timeout = '5s';
ALTER TABLE api_keys VALIDATE CONSTRAINT api_keys_created_at_is_set;
