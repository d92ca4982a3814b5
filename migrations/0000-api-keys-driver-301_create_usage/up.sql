-- Keeps sums of calls, because reading the usage of a key from its calls becomes slower with each call.
--
-- Calls made before counted_to are in the buckets (quarter hours and days, in UTC), together with the changes in
-- usage_changes that are not merged yet. All other calls are read from proxy_calls. docs/usage.md explains how the
-- tables work together.
--
-- The tables belong to the owner of proxy_calls and are created in its schema. A role that may read proxy_calls may
-- read them. There are no foreign keys, and the texts have no limit, so that no write of a call fails because of its
-- usage. transaction_id is a bigint, because clients can send and compare a bigint without knowing the type xid8.
--
-- Tables that a revert kept, because they hold the usage of deleted calls, are used again.
DO $$
DECLARE
    path pg_catalog.text := pg_catalog.current_setting('search_path');
    calls pg_catalog.oid := pg_catalog.to_regclass('proxy_calls');
    home pg_catalog.text := (
        SELECT pg_catalog.quote_ident(n.nspname)
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE c.oid OPERATOR(pg_catalog.=) calls
    );
    owner pg_catalog.regrole := (
        SELECT relowner FROM pg_catalog.pg_class WHERE oid OPERATOR(pg_catalog.=) calls
    );
    names CONSTANT pg_catalog.text[] :=
        '{usage_changes,usage_key_buckets,usage_tenant_buckets,usage_progress,usage_retention,usage_frontier}';
    usage_tables pg_catalog.text := 'usage_changes, usage_key_buckets, usage_tenant_buckets, usage_progress, usage_retention';
    name pg_catalog.text;
    planted pg_catalog.text;
    reader pg_catalog.text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', pg_catalog.concat(home, ', pg_temp'), true);

    FOREACH name IN ARRAY names LOOP
        SELECT c.oid::pg_catalog.regclass INTO planted
        FROM pg_catalog.pg_class AS c
        WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(name)
            AND c.relowner::pg_catalog.regrole::pg_catalog.text OPERATOR(pg_catalog.<>) pg_catalog.quote_ident(current_user)
            AND NOT pg_catalog.pg_has_role(c.relowner, owner, 'MEMBER');
        IF planted IS NOT NULL THEN
            RAISE EXCEPTION '% belongs to an unrelated role: rename or drop it, then migrate again', planted;
        END IF;
    END LOOP;

    IF pg_catalog.to_regclass('usage_retention') IS NULL THEN
        CREATE TABLE usage_changes (
            tenant_id      varchar     NOT NULL,
            transaction_id bigint      NOT NULL,
            id             bigint      GENERATED ALWAYS AS IDENTITY,
            api_key_id     pg_catalog.text,
            created_at     pg_catalog.timestamptz NOT NULL,
            calls          bigint      NOT NULL,
            spend          numeric     NOT NULL,
            nan_calls      bigint      NOT NULL,
            CONSTRAINT usage_changes_pkey PRIMARY KEY (tenant_id, transaction_id, id)
        ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0);
        CREATE INDEX ix_usage_changes_key ON usage_changes (tenant_id, api_key_id, transaction_id);
        CREATE INDEX ix_usage_changes_order ON usage_changes (transaction_id);
        CREATE INDEX ix_usage_changes_time ON usage_changes (created_at);

        CREATE TABLE usage_key_buckets (
            tenant_id  varchar     NOT NULL,
            api_key_id pg_catalog.text        NOT NULL,
            is_day     boolean     NOT NULL,
            start      pg_catalog.timestamptz NOT NULL,
            calls      bigint      NOT NULL,
            spend      numeric     NOT NULL,
            nan_calls  bigint      NOT NULL,
            CONSTRAINT usage_key_buckets_pkey PRIMARY KEY (tenant_id, api_key_id, is_day, start)
                INCLUDE (calls, spend, nan_calls)
        ) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.01);
        CREATE INDEX ix_usage_key_buckets_days ON usage_key_buckets (tenant_id, start)
            INCLUDE (api_key_id, calls, spend, nan_calls) WHERE is_day;
        CREATE INDEX ix_usage_key_buckets_start ON usage_key_buckets USING brin (start) WITH (autosummarize = on);

        CREATE TABLE usage_tenant_buckets (
            tenant_id varchar     NOT NULL,
            is_day    boolean     NOT NULL,
            start     pg_catalog.timestamptz NOT NULL,
            calls     bigint      NOT NULL,
            spend     numeric     NOT NULL,
            nan_calls bigint      NOT NULL,
            CONSTRAINT usage_tenant_buckets_pkey PRIMARY KEY (tenant_id, is_day, start)
                INCLUDE (calls, spend, nan_calls)
        ) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.01);
        CREATE INDEX ix_usage_tenant_buckets_start ON usage_tenant_buckets USING brin (start) WITH (autosummarize = on);

        CREATE TABLE usage_progress (
            generation   bigint      NOT NULL,
            merged_below bigint      NOT NULL,
            counted_to   pg_catalog.timestamptz NOT NULL,
            announced_to pg_catalog.timestamptz NOT NULL,
            announced_in bigint      NOT NULL,
            barrier      bigint,
            CONSTRAINT usage_progress_pkey PRIMARY KEY (generation)
        );
        INSERT INTO usage_progress VALUES (0, 0, '-infinity', '-infinity', 0, NULL);

        CREATE TABLE usage_retention (
            id         smallint    NOT NULL,
            deleted_to pg_catalog.timestamptz NOT NULL,
            CONSTRAINT usage_retention_pkey PRIMARY KEY (id),
            CONSTRAINT usage_retention_is_one_row CHECK (id OPERATOR(pg_catalog.=) 1)
        );
        INSERT INTO usage_retention VALUES (1, '-infinity');

        -- Seconds since 1970; the minimum is the earliest timestamptz. It is a sequence, because every transaction sees
        -- its current value, whatever its snapshot. It is set here, because every write is recorded as long as it has
        -- never been set.
        CREATE SEQUENCE usage_frontier AS bigint MINVALUE -210866803200 START -210866803200;
        PERFORM pg_catalog.setval('usage_frontier', -210866803200);
        GRANT SELECT ON SEQUENCE usage_frontier TO PUBLIC;

        COMMENT ON TABLE usage_changes IS 'Created by api_keys_driver. What changed below counted_to, until it is merged into the buckets.';
        COMMENT ON COLUMN usage_changes.transaction_id IS 'Of the writer. Never below usage_progress.merged_below, also after a restore into a server whose ids are lower.';
        COMMENT ON COLUMN usage_changes.api_key_id IS 'NULL: a call without a key, which only its tenant used.';
        COMMENT ON COLUMN usage_changes.created_at IS 'Of the call, or any moment of its quarter hour.';
        COMMENT ON COLUMN usage_changes.calls IS 'Negative: taken away. The same holds for spend and nan_calls.';
        COMMENT ON COLUMN usage_changes.nan_calls IS 'Those whose cost is not a finite number. Spend leaves them out.';
        COMMENT ON TABLE usage_key_buckets IS 'Created by api_keys_driver. Calls before counted_to, by the key.';
        COMMENT ON COLUMN usage_key_buckets.is_day IS 'A day in UTC; else a quarter hour. Each call is in both.';
        COMMENT ON TABLE usage_tenant_buckets IS 'Created by api_keys_driver. Calls before counted_to, by the tenant, with those that have no key.';
        COMMENT ON TABLE usage_progress IS 'Created by api_keys_driver. One row. The next generation replaces it.';
        COMMENT ON COLUMN usage_progress.merged_below IS 'No change of an older transaction is left in usage_changes.';
        COMMENT ON COLUMN usage_progress.counted_to IS 'Calls made before are in the buckets or in usage_changes.';
        COMMENT ON COLUMN usage_progress.announced_to IS 'Not before counted_to, and not after usage_frontier.';
        COMMENT ON COLUMN usage_progress.announced_in IS 'The transaction of the announcement.';
        COMMENT ON COLUMN usage_progress.barrier IS 'Older transactions may not know of the announcement. NULL: not taken yet.';
        COMMENT ON TABLE usage_retention IS 'Created by api_keys_driver. One row.';
        COMMENT ON COLUMN usage_retention.deleted_to IS 'Calls made before may be gone, while their usage stays.';
        COMMENT ON SEQUENCE usage_frontier IS 'Created by api_keys_driver. Writes of calls that were made before this second are recorded in usage_changes.';

        FOR reader IN
            SELECT DISTINCT CASE
                WHEN granted.grantee OPERATOR(pg_catalog.=) 0 THEN 'PUBLIC'
                ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(granted.grantee))
            END
            FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(c.relacl) AS granted
            WHERE c.oid OPERATOR(pg_catalog.=) calls AND granted.privilege_type OPERATOR(pg_catalog.=) 'SELECT'
        LOOP
            EXECUTE pg_catalog.format('GRANT SELECT ON %s TO %s', usage_tables, reader);
        END LOOP;
    END IF;

    FOREACH name IN ARRAY names LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %I OWNER TO %s', name, owner);
    END LOOP;

    PERFORM pg_catalog.set_config('search_path', path, true);
END
$$;
