-- Records writes of calls that are older than the frontier in usage_changes, because they change the sums.
--
-- Triggers are used because the existing service also writes proxy_calls. They are row triggers, because PostgreSQL
-- clones these to every partition, so they also fire for a write that names a partition.
--
-- The trigger on inserts compares with the frontier in its WHEN clause. PostgreSQL reads and plans that clause for each
-- statement, so it has as few nodes as possible. In the body of the function, the comparison would cost three times as
-- much. PostgreSQL refuses to alter the type of created_at while the trigger exists: see docs/usage.md. If a writer may
-- not read the sequence, every call that it writes is recorded. This is slower, but no insert fails.
--
-- The function finds the tables in the schema of the table that fired it, or of its root if that is a partition. So it
-- works after the schema is renamed. It writes as its owner, so no other role may create a trigger with it.
--
-- Writes while a trigger was missing are not in the sums, as after a revert that kept the tables. So all calls are
-- counted again, and the usage of deleted calls is kept. This happens before the lock on proxy_calls is taken, because
-- it takes longer the more sums there are.
DO $$
DECLARE
    path pg_catalog.text := pg_catalog.current_setting('search_path');
    home pg_catalog.text := (
        SELECT pg_catalog.quote_ident(n.nspname)
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('proxy_calls')
    );
    owner pg_catalog.regrole := (
        SELECT relowner FROM pg_catalog.pg_class WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('proxy_calls')
    );
    planted pg_catalog.text;
    kept_to pg_catalog.timestamptz;
    kept_day pg_catalog.timestamptz;
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', '1s', true);

    -- A function that is replaced keeps its owner.
    SELECT p.oid::pg_catalog.regprocedure INTO planted
    FROM pg_catalog.pg_proc AS p
    JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
    WHERE pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.=) home
        AND p.proname::pg_catalog.text OPERATOR(pg_catalog.=) ANY (ARRAY['proxy_calls_tell_usage', 'proxy_calls_forget_usage'])
        AND p.proowner::pg_catalog.regrole::pg_catalog.text OPERATOR(pg_catalog.<>) pg_catalog.quote_ident(current_user)
        AND NOT pg_catalog.pg_has_role(p.proowner, owner, 'MEMBER')
    LIMIT 1;
    IF planted IS NOT NULL THEN
        RAISE EXCEPTION 'the function % belongs to an unrelated role: rename or drop it, then migrate again', planted;
    END IF;

    PERFORM pg_catalog.set_config('search_path', pg_catalog.concat(home, ', pg_temp'), true);

    CREATE OR REPLACE FUNCTION proxy_calls_tell_usage() RETURNS pg_catalog.trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $function$
    DECLARE
        root pg_catalog.regclass := pg_catalog.pg_partition_root(TG_RELID);
        home pg_catalog.text := CASE
            WHEN root IS NULL THEN pg_catalog.quote_ident(TG_TABLE_SCHEMA)
            ELSE pg_catalog.substring(root::pg_catalog.text, '^(.*)[.]')
        END;
        -- NULL while the sequence was never set, as in a copy of the schema: then every write is recorded.
        frontier pg_catalog.timestamptz := pg_catalog.to_timestamp(pg_catalog.pg_sequence_last_value(
            pg_catalog.to_regclass(home OPERATOR(pg_catalog.||) '.usage_frontier')));
    BEGIN
        IF TG_OP OPERATOR(pg_catalog.=) 'INSERT' THEN
            IF NEW.created_at OPERATOR(pg_catalog.>=) frontier THEN
                RETURN NULL;
            END IF;
        ELSIF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
            IF OLD.created_at OPERATOR(pg_catalog.>=) frontier THEN
                RETURN NULL;
            END IF;
        ELSIF (OLD.created_at OPERATOR(pg_catalog.>=) frontier AND NEW.created_at OPERATOR(pg_catalog.>=) frontier)
            OR (OLD.tenant_id, OLD.api_key_id, OLD.created_at, OLD.cost_cents)
                IS NOT DISTINCT FROM (NEW.tenant_id, NEW.api_key_id, NEW.created_at, NEW.cost_cents)
        THEN
            RETURN NULL;
        END IF;

        -- For the rest of the function. A cached plan is used for the path that it was made for only.
        PERFORM pg_catalog.set_config('search_path', home OPERATOR(pg_catalog.||) ', pg_temp', true);
        INSERT INTO usage_changes (transaction_id, tenant_id, api_key_id, created_at, calls, spend, nan_calls)
        SELECT
            -- After a restore, merged_below may be an id of the other server, higher than any id here.
            GREATEST(
                pg_catalog.pg_current_xact_id()::pg_catalog.text::pg_catalog.int8,
                (SELECT p.merged_below FROM usage_progress AS p ORDER BY p.generation DESC LIMIT 1)
            ),
            told.tenant_id, told.api_key_id, told.created_at, told.calls,
            CASE WHEN told.is_nan THEN 0 ELSE told.calls OPERATOR(pg_catalog.*) COALESCE(told.cost_cents, 0) END,
            CASE WHEN told.is_nan THEN told.calls ELSE 0 END
        FROM (
            SELECT sides.tenant_id, sides.api_key_id, sides.created_at, sides.calls, sides.cost_cents,
                   sides.cost_cents OPERATOR(pg_catalog.>=) 'Infinity' OR sides.cost_cents OPERATOR(pg_catalog.=) '-Infinity' AS is_nan
            FROM (VALUES
                (OLD.tenant_id::pg_catalog.text, OLD.api_key_id::pg_catalog.text, OLD.created_at, -1, OLD.cost_cents),
                (NEW.tenant_id::pg_catalog.text, NEW.api_key_id::pg_catalog.text, NEW.created_at, 1, NEW.cost_cents)
            ) AS sides (tenant_id, api_key_id, created_at, calls, cost_cents)
            WHERE sides.tenant_id IS NOT NULL
        ) AS told;
        RETURN NULL;
    END
    $function$;

    CREATE OR REPLACE FUNCTION proxy_calls_forget_usage() RETURNS pg_catalog.trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $function$
    BEGIN
        -- DELETE and not TRUNCATE, whose lock could meet that of a reader in a deadlock.
        PERFORM pg_catalog.set_config(
            'search_path', pg_catalog.quote_ident(TG_TABLE_SCHEMA) OPERATOR(pg_catalog.||) ', pg_temp', true);
        DELETE FROM usage_changes;
        DELETE FROM usage_key_buckets;
        DELETE FROM usage_tenant_buckets;
        UPDATE usage_retention SET deleted_to = '-infinity';
        RETURN NULL;
    END
    $function$;

    REVOKE ALL ON FUNCTION proxy_calls_tell_usage(), proxy_calls_forget_usage() FROM PUBLIC;
    EXECUTE pg_catalog.format('ALTER FUNCTION proxy_calls_tell_usage() OWNER TO %s', owner);
    EXECUTE pg_catalog.format('ALTER FUNCTION proxy_calls_forget_usage() OWNER TO %s', owner);

    -- A worker that waits for this lock sees the new row afterwards.
    LOCK TABLE usage_progress IN EXCLUSIVE MODE;
    SELECT r.deleted_to, pg_catalog.date_bin('1 day', r.deleted_to, '2000-01-01 00:00:00+00') INTO kept_to, kept_day
    FROM usage_retention AS r
    WHERE EXISTS (SELECT FROM usage_progress AS p WHERE p.announced_to OPERATOR(pg_catalog.>) r.deleted_to)
        AND 3 OPERATOR(pg_catalog.>) (
            SELECT pg_catalog.count(*) FROM pg_catalog.pg_trigger
            WHERE tgrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('proxy_calls') AND tgname::pg_catalog.text OPERATOR(pg_catalog.=)
                ANY (ARRAY['proxy_calls_tell_late_insert', 'proxy_calls_tell_usage', 'proxy_calls_forget_usage'])
        );
    IF FOUND THEN
        DELETE FROM usage_changes WHERE created_at OPERATOR(pg_catalog.>=) kept_to;
        DELETE FROM usage_key_buckets
        WHERE start OPERATOR(pg_catalog.>=) kept_to OR is_day AND start OPERATOR(pg_catalog.>=) kept_day;
        DELETE FROM usage_tenant_buckets
        WHERE start OPERATOR(pg_catalog.>=) kept_to OR is_day AND start OPERATOR(pg_catalog.>=) kept_day;
        INSERT INTO usage_key_buckets (tenant_id, api_key_id, is_day, start, calls, spend, nan_calls)
        SELECT tenant_id, api_key_id, true, kept_day, pg_catalog.sum(calls), pg_catalog.sum(spend), pg_catalog.sum(nan_calls)
        FROM usage_key_buckets WHERE start OPERATOR(pg_catalog.>=) kept_day
        GROUP BY tenant_id, api_key_id;
        INSERT INTO usage_tenant_buckets (tenant_id, is_day, start, calls, spend, nan_calls)
        SELECT tenant_id, true, kept_day, pg_catalog.sum(calls), pg_catalog.sum(spend), pg_catalog.sum(nan_calls)
        FROM usage_tenant_buckets WHERE start OPERATOR(pg_catalog.>=) kept_day
        GROUP BY tenant_id;
        WITH progress AS (DELETE FROM usage_progress RETURNING generation, merged_below)
        INSERT INTO usage_progress (generation, merged_below, counted_to, announced_to, announced_in, barrier)
        SELECT pg_catalog.max(generation) OPERATOR(pg_catalog.+) 1, pg_catalog.max(merged_below), kept_to, kept_to, 0, NULL
        FROM progress;
    END IF;

    CREATE OR REPLACE TRIGGER proxy_calls_tell_late_insert AFTER INSERT ON proxy_calls FOR EACH ROW
    WHEN ((pg_catalog.has_sequence_privilege('usage_frontier'::pg_catalog.regclass, 'SELECT')
        AND NEW.created_at OPERATOR(pg_catalog.>=) pg_catalog.to_timestamp(pg_catalog.pg_sequence_last_value('usage_frontier'::pg_catalog.regclass))) IS NOT TRUE)
    EXECUTE FUNCTION proxy_calls_tell_usage();

    CREATE OR REPLACE TRIGGER proxy_calls_tell_usage AFTER UPDATE OR DELETE ON proxy_calls FOR EACH ROW
    EXECUTE FUNCTION proxy_calls_tell_usage();

    CREATE OR REPLACE TRIGGER proxy_calls_forget_usage AFTER TRUNCATE ON proxy_calls FOR EACH STATEMENT
    EXECUTE FUNCTION proxy_calls_forget_usage();

    PERFORM pg_catalog.set_config('search_path', path, true);
END
$$;
