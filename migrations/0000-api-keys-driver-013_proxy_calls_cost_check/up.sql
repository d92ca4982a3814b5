-- numeric allows NaN, and one NaN makes a whole sum NaN: new costs must be numbers.
--
-- First of two: new rows are checked from now on. The strong lock lasts for milliseconds.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_constraint
        WHERE conrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('proxy_calls')
            AND conname OPERATOR(pg_catalog.=) 'proxy_calls_cost_cents_is_a_number'
    ) THEN
        ALTER TABLE proxy_calls ADD CONSTRAINT proxy_calls_cost_cents_is_a_number
            CHECK (cost_cents OPERATOR(pg_catalog.<>) 'NaN'::numeric) NOT VALID;
    END IF;
END
$$;
