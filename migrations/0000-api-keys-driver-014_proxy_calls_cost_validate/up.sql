-- Second of two: existing rows are checked. Reads and writes continue.
--
-- Old rows never fail this step. If one holds NaN, the check stays not validated, and holds for new rows only.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    ALTER TABLE proxy_calls VALIDATE CONSTRAINT proxy_calls_cost_cents_is_a_number;
EXCEPTION WHEN check_violation THEN
    RAISE NOTICE 'proxy_calls holds costs that are NaN: % checks new rows only', 'proxy_calls_cost_cents_is_a_number';
END
$$;
