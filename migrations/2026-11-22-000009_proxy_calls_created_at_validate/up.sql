-- Second of three: the rows that were there before are checked. Reads and writes go on meanwhile.
SET LOCAL lock_timeout = '5s';
ALTER TABLE proxy_calls VALIDATE CONSTRAINT proxy_calls_created_at_is_set;
