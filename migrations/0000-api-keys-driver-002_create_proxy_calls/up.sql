-- Creates proxy_calls in an empty database. The existing service's database keeps its table.
--
-- The columns are those of the existing service. Its index on (tenant_id) is not created, because a later index
-- replaces it. The table is empty, so its indexes need not be built concurrently.
DO $$
BEGIN
    IF pg_catalog.to_regclass('proxy_calls') IS NOT NULL THEN
        RETURN;
    END IF;

    CREATE TABLE proxy_calls (
        id                    varchar(100) NOT NULL,
        tenant_id             varchar(100) NOT NULL,
        api_key_id            varchar(100),
        endpoint              varchar(100) NOT NULL,
        model                 varchar(100) NOT NULL,
        request_hash          varchar(64)  NOT NULL,
        request_json          pg_catalog.text         NOT NULL,
        response_hash         varchar(64),
        response_json         pg_catalog.text,
        status_code           integer,
        error_code            varchar(50),
        input_tokens          integer,
        output_tokens         integer,
        cost_cents            numeric(10, 4),
        policy_decisions_json pg_catalog.text,
        was_blocked           boolean,
        block_reason          varchar(100),
        latency_ms            integer,
        upstream_latency_ms   integer,
        replay_eligible       boolean,
        replayed_from_id      varchar(100),
        created_at            pg_catalog.timestamptz  DEFAULT pg_catalog.now(),
        user_id               varchar(255),
        CONSTRAINT proxy_calls_pkey PRIMARY KEY (id)
    );
    -- How down.sql knows that the table is this crate's to drop.
    COMMENT ON TABLE proxy_calls IS 'Created by api_keys_driver.';

    CREATE INDEX ix_proxy_calls_api_key_id ON proxy_calls USING btree (api_key_id);
    CREATE INDEX ix_proxy_calls_request_hash ON proxy_calls USING btree (request_hash);
    CREATE INDEX ix_proxy_calls_created_at ON proxy_calls USING btree (created_at);
    CREATE INDEX ix_proxy_calls_user_id ON proxy_calls USING btree (user_id);
    CREATE INDEX ix_proxy_calls_tenant_time ON proxy_calls USING btree (tenant_id, created_at);
    CREATE INDEX ix_proxy_calls_tenant_user ON proxy_calls USING btree (tenant_id, user_id);
    CREATE INDEX ix_proxy_calls_replay ON proxy_calls USING btree (tenant_id, request_hash, replay_eligible);
END
$$;
