-- The service's generator emits prefixes of 12 characters, and the column holds 10.
--
-- Widening a varchar changes the catalog only. A column that is wide enough is not changed: changing a type
-- invalidates the statements that other sessions have prepared. `migrate` skips the step if a view, a policy or
-- the like depends on the column: PostgreSQL would refuse it. The column keeps its collation, because PostgreSQL would
-- rebuild its indexes under the strong lock for another one.
DO $$
DECLARE
    collation_name pg_catalog.text := (
        SELECT pg_catalog.format('%I.%I', n.nspname, c.collname)
        FROM pg_catalog.pg_attribute AS a
        JOIN pg_catalog.pg_collation AS c ON c.oid OPERATOR(pg_catalog.=) a.attcollation
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.collnamespace
        WHERE a.attrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('api_keys')
            AND a.attname OPERATOR(pg_catalog.=) 'key_prefix'
            AND a.atttypmod OPERATOR(pg_catalog.<>) -1
            AND (a.atttypmod OPERATOR(pg_catalog.-) 4) OPERATOR(pg_catalog.<) 12
    );
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);
    IF collation_name IS NOT NULL THEN
        EXECUTE pg_catalog.format('ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(12) COLLATE %s', collation_name);
    END IF;
END
$$;
