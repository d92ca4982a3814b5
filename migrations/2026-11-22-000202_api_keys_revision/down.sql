-- The numbers are lost; up.sql goes on above the highest one that an event holds.
SET LOCAL lock_timeout = '5s';
ALTER TABLE api_keys DROP COLUMN revision;
