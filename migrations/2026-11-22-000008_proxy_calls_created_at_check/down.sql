SET LOCAL lock_timeout = '5s';
ALTER TABLE proxy_calls DROP CONSTRAINT proxy_calls_created_at_is_set;
