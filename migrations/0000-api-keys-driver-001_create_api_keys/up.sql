-- Creates api_keys in an empty database. The existing service's database keeps its table.
--
-- The columns are those of the existing service; later migrations bring both tables to the same schema. Two of
-- the service's indexes are not created, because later indexes replace them: on (tenant_id) and on (key_hash).
-- The table is empty, so its indexes need not be built concurrently.
DO $$
BEGIN
    IF pg_catalog.to_regclass('api_keys') IS NOT NULL THEN
        RETURN;
    END IF;

    CREATE TABLE api_keys (
        id                    varchar(36)  NOT NULL,
        tenant_id             varchar(36)  NOT NULL,
        user_id               varchar(36),
        name                  varchar(100) NOT NULL,
        key_prefix            varchar(10)  NOT NULL,
        key_hash              varchar(128) NOT NULL,
        permissions_json      pg_catalog.text,
        allowed_workers_json  pg_catalog.text,
        rate_limit_rpm        integer,
        max_concurrent_runs   integer,
        status                varchar(50)  NOT NULL DEFAULT 'active',
        expires_at            pg_catalog.timestamptz,
        revoked_at            pg_catalog.timestamptz,
        revoked_reason        varchar(255),
        last_used_at          pg_catalog.timestamptz,
        total_requests        bigint       NOT NULL DEFAULT 0,
        created_at            pg_catalog.timestamptz  DEFAULT pg_catalog.now(),
        frozen_at             pg_catalog.timestamptz,
        frozen_by             varchar(100),
        freeze_reason         pg_catalog.text,
        is_synthetic          boolean      NOT NULL DEFAULT false,
        synthetic_scenario_id pg_catalog.text,
        is_frozen             boolean      NOT NULL DEFAULT false,
        CONSTRAINT api_keys_pkey PRIMARY KEY (id)
    );
    -- How down.sql knows that the table is this crate's to drop.
    COMMENT ON TABLE api_keys IS 'Created by api_keys_driver.';

    CREATE INDEX ix_api_keys_key_prefix ON api_keys USING btree (key_prefix);
    CREATE INDEX ix_api_keys_is_frozen ON api_keys USING btree (is_frozen, tenant_id);
    CREATE INDEX idx_api_keys_synthetic_scenario ON api_keys USING btree (is_synthetic, synthetic_scenario_id)
        WHERE is_synthetic;
END
$$;
