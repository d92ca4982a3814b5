//! Changes that break a migrated database, and what `check` reports for each.

/// The SQL that breaks something, what `check` then reports, and the SQL that repairs it; empty if `migrate` does.
pub(super) type Break = (&'static str, &'static [&'static str], &'static str);

/// Each breaks one thing of a migrated database.
pub(super) const BREAKS: &[Break] = &[
    (
        "CREATE TABLE old_keys () INHERITS (api_keys)",
        &["!! children of api_keys"],
        "ALTER TABLE old_keys NO INHERIT api_keys; DROP TABLE old_keys",
    ),
    (
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_pkey CASCADE",
        &["! primary key of api_keys"],
        "ALTER TABLE api_keys ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id)",
    ),
    (
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_pkey CASCADE;
         ALTER TABLE api_keys ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id) DEFERRABLE",
        &["! primary key of api_keys"],
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_pkey;
         ALTER TABLE public.api_keys ADD PRIMARY KEY (id)",
    ),
    (
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_pkey CASCADE;
         CREATE UNIQUE INDEX partial ON api_keys (id) WHERE status = 'active';
         CREATE UNIQUE INDEX more ON api_keys (id, name);
         CREATE UNIQUE INDEX \"lower\" ON api_keys (lower(id))",
        &["! primary key of api_keys"],
        "DROP INDEX partial, more, \"lower\"; ALTER TABLE api_keys ADD PRIMARY KEY (id)",
    ),
    (
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_pkey CASCADE;
         CREATE UNIQUE INDEX other ON api_keys (tenant_id, id) INCLUDE (name)",
        &[],
        "DROP INDEX other; ALTER TABLE api_keys ADD PRIMARY KEY (id)",
    ),
    (
        "CREATE COLLATION mine FROM \"C\";
         ALTER TABLE api_keys ALTER tenant_id TYPE varchar(36) COLLATE mine, ALTER status TYPE varchar(50) COLLATE mine,
             ALTER permissions_json TYPE text COLLATE mine;
         ALTER TABLE proxy_calls ALTER api_key_id TYPE varchar(100) COLLATE mine;
         UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'mine'",
        &["! column api_keys.status", "! column api_keys.tenant_id", "! column proxy_calls.api_key_id"],
        "ALTER TABLE public.api_keys ALTER COLUMN status TYPE character varying(50) COLLATE \"default\";
         ALTER TABLE public.api_keys ALTER COLUMN tenant_id TYPE character varying(36) COLLATE \"default\";
         ALTER TABLE public.proxy_calls ALTER COLUMN api_key_id TYPE character varying(100) COLLATE \"default\";
         ALTER TABLE api_keys ALTER permissions_json TYPE text; DROP COLLATION mine",
    ),
    (
        "CREATE RULE kept AS ON DELETE TO api_keys DO INSTEAD NOTHING",
        &["! rules on api_keys"],
        "DROP RULE kept ON public.api_keys",
    ),
    (
        "CREATE RULE noted AS ON INSERT TO proxy_calls DO ALSO NOTIFY calls",
        &["! rules on proxy_calls"],
        "DROP RULE noted ON public.proxy_calls",
    ),
    (
        "CREATE TABLE old_calls () INHERITS (proxy_calls)",
        &["!! children of proxy_calls"],
        "DROP TABLE old_calls",
    ),
    (
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER early BEFORE INSERT OR UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION late();
         CREATE TRIGGER \"~api_keys_d\" BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION late();
         CREATE TRIGGER \"é\" BEFORE INSERT ON api_keys FOR EACH ROW EXECUTE FUNCTION late();
         CREATE TRIGGER \"~~\" BEFORE DELETE ON api_keys FOR EACH ROW EXECUTE FUNCTION late();
         CREATE TRIGGER \"~~~\" AFTER UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION late();
         CREATE TRIGGER \"~~~~\" BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION late();
         ALTER TABLE api_keys DISABLE TRIGGER \"~~~~\"",
        &["! trigger ~api_keys_d on api_keys", "! trigger é on api_keys"],
        "DROP FUNCTION late() CASCADE",
    ),
    (
        "DROP INDEX ix_api_keys_tenant_newest_first",
        &["pending api_keys_tenant_newest_first", "index ix_api_keys_tenant_newest_first"],
        "",
    ),
    (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_api_keys_key_hash'::regclass",
        &["pending api_keys_key_hash_unique", "index uq_api_keys_key_hash"],
        "",
    ),
    (
        "DROP INDEX ix_proxy_calls_key_usage; CREATE INDEX ix_proxy_calls_key_usage ON proxy_calls (api_key_id)",
        &["pending proxy_calls_key_usage", "index ix_proxy_calls_key_usage"],
        "DROP INDEX ix_proxy_calls_key_usage",
    ),
    (
        "DROP TRIGGER \"~api_keys_number\" ON api_keys",
        &["pending api_keys_changes", "! trigger ~api_keys_number on api_keys"],
        "",
    ),
    (
        "CREATE OR REPLACE FUNCTION api_keys_number() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
             SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN NEW; END'",
        &["pending api_keys_changes", "! function api_keys_number"],
        "",
    ),
    ("ALTER TABLE api_key_events ENABLE TRIGGER api_key_events_notify", &[], ""),
    (
        "DROP TABLE api_key_events_compacted",
        &["pending create_api_key_events", "! table api_key_events_compacted"],
        "",
    ),
    (
        "ALTER TABLE api_keys DISABLE TRIGGER \"~api_keys_number\"",
        &["! trigger ~api_keys_number on api_keys"],
        "ALTER TABLE public.api_keys ENABLE TRIGGER \"~api_keys_number\"",
    ),
    (
        "ALTER TABLE api_keys ENABLE REPLICA TRIGGER \"~api_keys_number\"",
        &["! trigger ~api_keys_number on api_keys"],
        "ALTER TABLE public.api_keys ENABLE TRIGGER \"~api_keys_number\"",
    ),
    (
        "ALTER TABLE proxy_calls DROP CONSTRAINT proxy_calls_cost_cents_is_a_number",
        &[
            "pending proxy_calls_cost_check",
            "pending proxy_calls_cost_validate",
            "constraint proxy_calls_cost_cents_is_a_number on proxy_calls",
        ],
        "",
    ),
    (
        "UPDATE pg_constraint SET convalidated = false WHERE conname = 'proxy_calls_cost_cents_is_a_number'",
        &["constraint proxy_calls_cost_cents_is_a_number on proxy_calls"],
        "ALTER TABLE public.proxy_calls VALIDATE CONSTRAINT proxy_calls_cost_cents_is_a_number",
    ),
    (
        "ALTER TABLE api_keys ALTER COLUMN created_at DROP NOT NULL",
        &[
            "pending api_keys_created_at_check",
            "pending api_keys_created_at_validate",
            "pending api_keys_created_at_not_null",
            "column api_keys.created_at",
        ],
        "",
    ),
    (
        "ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(10)",
        &["pending widen_key_prefix", "column api_keys.key_prefix", "prepared statements"],
        "",
    ),
    (
        "ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(10);
         CREATE VIEW prefixes AS SELECT key_prefix FROM api_keys",
        &["column api_keys.key_prefix"],
        "DROP VIEW prefixes",
    ),
    (
        "ALTER TABLE api_keys ALTER COLUMN status TYPE varchar(20)",
        &["column api_keys.status"],
        "ALTER TABLE public.api_keys ALTER COLUMN status TYPE character varying(50)",
    ),
    (
        "ALTER TABLE api_keys ALTER COLUMN total_requests TYPE integer",
        &["! column api_keys.total_requests"],
        "ALTER TABLE api_keys ALTER COLUMN total_requests TYPE bigint",
    ),
    (
        "ALTER TABLE api_keys RENAME COLUMN frozen_by TO by_whom",
        &["! column api_keys.frozen_by"],
        "ALTER TABLE api_keys RENAME COLUMN by_whom TO frozen_by",
    ),
    (
        "ALTER TABLE proxy_calls RENAME TO calls; CREATE VIEW proxy_calls AS SELECT * FROM calls",
        &["!! table proxy_calls"],
        "DROP VIEW proxy_calls; ALTER TABLE calls RENAME TO proxy_calls",
    ),
    (
        "ALTER TABLE proxy_calls REPLICA IDENTITY NOTHING; CREATE PUBLICATION everything FOR ALL TABLES",
        &["! replica identity of proxy_calls"],
        "ALTER TABLE proxy_calls REPLICA IDENTITY DEFAULT",
    ),
    (
        "ALTER TABLE proxy_calls REPLICA IDENTITY NOTHING; DROP PUBLICATION everything;
         CREATE PUBLICATION inserts FOR TABLE proxy_calls WITH (publish = 'insert')",
        &[],
        "DROP PUBLICATION inserts; ALTER TABLE proxy_calls REPLICA IDENTITY DEFAULT",
    ),
    (
        // PostgreSQL 14 cannot publish a schema.
        "ALTER TABLE proxy_calls REPLICA IDENTITY NOTHING;
         DO $$ BEGIN
             EXECUTE 'CREATE PUBLICATION of_schema FOR ' || CASE
                 WHEN current_setting('server_version_num')::integer < 150000 THEN 'ALL TABLES' ELSE 'TABLES IN SCHEMA public'
             END;
         END $$",
        &["! replica identity of proxy_calls"],
        "DROP PUBLICATION of_schema; ALTER TABLE proxy_calls REPLICA IDENTITY DEFAULT",
    ),
    (
        "CREATE UNIQUE INDEX identity ON api_keys (key_hash); ALTER TABLE api_keys REPLICA IDENTITY USING INDEX identity;
         DROP INDEX identity; CREATE PUBLICATION keys FOR TABLE api_keys",
        &["! replica identity of api_keys"],
        "ALTER TABLE public.api_keys REPLICA IDENTITY FULL; DROP PUBLICATION keys;
         ALTER TABLE api_keys REPLICA IDENTITY DEFAULT",
    ),
    (
        "CREATE SUBSCRIPTION far CONNECTION 'dbname=nowhere' PUBLICATION keys WITH (connect = false);
         INSERT INTO pg_subscription_rel SELECT oid, 'api_keys'::regclass, 'r', NULL FROM pg_subscription",
        &["! subscription far of api_keys"],
        "ALTER SUBSCRIPTION far SET (slot_name = NONE); DROP SUBSCRIPTION far",
    ),
    (
        "ALTER TABLE api_keys SET UNLOGGED",
        &["table api_keys"],
        "ALTER TABLE public.api_keys SET LOGGED",
    ),
    (
        "ALTER TABLE api_keys ADD COLUMN team text NOT NULL DEFAULT '', ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY;
         ALTER TABLE api_keys ALTER COLUMN team DROP DEFAULT",
        &["! column api_keys.team"],
        "ALTER TABLE public.api_keys ALTER COLUMN team SET DEFAULT 'none'",
    ),
    (
        "ALTER TABLE api_keys ALTER COLUMN team DROP DEFAULT;
         CREATE FUNCTION give_team() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.team := ''none''; RETURN NEW; END';
         CREATE TRIGGER give_team BEFORE INSERT ON api_keys FOR EACH ROW EXECUTE FUNCTION give_team()",
        &[],
        "DROP FUNCTION give_team() CASCADE; ALTER TABLE api_keys DROP COLUMN team, DROP COLUMN number",
    ),
    (
        "ALTER TABLE proxy_calls ADD COLUMN region text NOT NULL",
        &["! column proxy_calls.region"],
        "ALTER TABLE proxy_calls DROP COLUMN region",
    ),
    (
        "ALTER TABLE api_keys DROP COLUMN freeze_reason;
         ALTER TABLE api_keys ADD COLUMN freeze_reason text GENERATED ALWAYS AS (frozen_by || '') STORED",
        &["! column api_keys.freeze_reason"],
        "ALTER TABLE public.api_keys ALTER COLUMN freeze_reason DROP EXPRESSION",
    ),
    (
        "ALTER TABLE api_keys ALTER COLUMN id TYPE varchar(36) COLLATE \"C\";
         ALTER TABLE proxy_calls ALTER COLUMN api_key_id TYPE varchar(100) COLLATE \"POSIX\"",
        &["! column proxy_calls.api_key_id"],
        "ALTER TABLE public.proxy_calls ALTER COLUMN api_key_id TYPE character varying(100) COLLATE \"C\"",
    ),
    (
        "CREATE DOMAIN short AS varchar(20); ALTER TABLE api_keys ALTER COLUMN name TYPE short",
        &["column api_keys.name"],
        "ALTER TABLE public.api_keys ALTER COLUMN name TYPE character varying(100)",
    ),
    (
        "SET session_replication_role = replica",
        &["! session_replication_role"],
        "SET session_replication_role = origin",
    ),
    (
        "SET default_transaction_read_only = on",
        &["! default_transaction_read_only"],
        "SET default_transaction_read_only = off",
    ),
    (
        "CREATE SCHEMA app; CREATE TABLE app.api_key_events (); SET search_path = app, public",
        &["!! search_path and api_key_events"],
        "SET search_path = public",
    ),
    (
        "SET allow_system_table_mods = on;
         INSERT INTO pg_extension VALUES (99999, 'timescaledb', 10, 2200, true, '1', NULL, NULL)",
        &["extension timescaledb"],
        "DELETE FROM pg_extension WHERE oid = 99999; RESET allow_system_table_mods",
    ),
    (
        "SET allow_system_table_mods = on;
         INSERT INTO pg_extension VALUES (99999, 'citus', 10, 2200, true, '1', NULL, NULL)",
        &["extension citus"],
        "DELETE FROM pg_extension WHERE oid = 99999; RESET allow_system_table_mods",
    ),
    (
        "CREATE ROLE planter; ALTER FUNCTION api_keys_number() OWNER TO planter",
        &["! owner of function api_keys_number()"],
        "ALTER FUNCTION api_keys_number() OWNER TO CURRENT_USER; DROP ROLE planter",
    ),
    (
        "CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
         DROP INDEX ix_api_keys_tenant_newest_first;
         CREATE EVENT TRIGGER watches ON ddl_command_end EXECUTE FUNCTION watch()",
        &[
            "pending api_keys_tenant_newest_first",
            "event trigger watches",
            "index ix_api_keys_tenant_newest_first",
        ],
        "DROP EVENT TRIGGER watches; DROP FUNCTION watch()",
    ),
    (
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC;
         CREATE ROLE keeper; CREATE ROLE deputy IN ROLE keeper; GRANT CREATE ON SCHEMA public TO deputy;
         DROP TRIGGER \"~api_keys_number\" ON api_keys;
         DO $$ DECLARE name text; BEGIN
             FOR name IN SELECT oid::regclass FROM pg_class
                 WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') OR relname = 'usage_frontier'
             LOOP EXECUTE format('ALTER TABLE %s OWNER TO keeper', name); END LOOP;
         END $$;
         SET ROLE deputy",
        &[
            "pending api_keys_changes",
            "!! CREATE on schema public of keeper",
            "! trigger ~api_keys_number on api_keys",
        ],
        "RESET ROLE; REASSIGN OWNED BY keeper TO CURRENT_USER; DROP OWNED BY deputy; DROP ROLE keeper, deputy",
    ),
    (
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC; CREATE ROLE keeper; ALTER TABLE api_keys OWNER TO keeper",
        &["! USAGE on schema public of keeper"],
        "ALTER TABLE api_keys OWNER TO CURRENT_USER; DROP ROLE keeper; GRANT USAGE ON SCHEMA public TO PUBLIC",
    ),
    (
        "ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE ROLE reader_of_keys NOSUPERUSER;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reader_of_keys;
         GRANT SELECT, UPDATE ON usage_frontier TO reader_of_keys;
         SET ROLE reader_of_keys",
        &["row security on api_keys"],
        "RESET ROLE; ALTER TABLE api_keys DISABLE ROW LEVEL SECURITY; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE SELECT ON proxy_calls FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! SELECT on proxy_calls"],
        "RESET ROLE; GRANT SELECT ON public.proxy_calls TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE SELECT ON api_keys FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! SELECT (key_hash) on api_keys", "! SELECT on api_keys"],
        "RESET ROLE; GRANT SELECT ON api_keys TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE INSERT ON api_keys FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! INSERT on api_keys"],
        "RESET ROLE; GRANT INSERT ON public.api_keys TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE UPDATE ON api_keys FROM reader_of_keys;
         GRANT UPDATE (last_used_at, total_requests) ON api_keys TO reader_of_keys; SET ROLE reader_of_keys",
        &["! UPDATE on api_keys"],
        "RESET ROLE; GRANT UPDATE ON public.api_keys TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE UPDATE ON api_keys FROM reader_of_keys;
         GRANT UPDATE (name, permissions_json, allowed_workers_json, rate_limit_rpm, max_concurrent_runs, status,
             expires_at, revoked_at, revoked_reason, frozen_at, frozen_by, freeze_reason, is_frozen)
             ON api_keys TO reader_of_keys; SET ROLE reader_of_keys",
        &["! UPDATE (last_used_at, total_requests) on api_keys"],
        "RESET ROLE; GRANT UPDATE ON public.api_keys TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE UPDATE ON usage_frontier FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! UPDATE on usage_frontier"],
        "RESET ROLE; GRANT UPDATE ON public.usage_frontier TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; CREATE ROLE planter; GRANT CREATE ON SCHEMA public TO planter",
        &["CREATE on schema public of planter"],
        "REVOKE CREATE ON SCHEMA public FROM planter; DROP ROLE planter; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE SELECT ON api_key_events FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! SELECT on api_key_events"],
        "RESET ROLE; GRANT SELECT ON public.api_key_events TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE DELETE ON api_keys FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! DELETE on api_keys"],
        "RESET ROLE; GRANT DELETE ON public.api_keys TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE INSERT ON proxy_calls FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! INSERT on proxy_calls"],
        "RESET ROLE; GRANT INSERT ON public.proxy_calls TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE DELETE, UPDATE ON proxy_calls FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! DELETE, UPDATE on proxy_calls"],
        "RESET ROLE; GRANT DELETE, UPDATE ON public.proxy_calls TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE DELETE ON api_key_events FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! DELETE on api_key_events"],
        "RESET ROLE; GRANT DELETE ON public.api_key_events TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE UPDATE ON api_key_events_compacted FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! UPDATE on api_key_events_compacted"],
        "RESET ROLE; GRANT UPDATE ON public.api_key_events_compacted TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE SELECT ON usage_tenant_buckets FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! SELECT on usage_tenant_buckets"],
        "RESET ROLE; GRANT SELECT ON public.usage_tenant_buckets TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; REVOKE UPDATE ON usage_retention FROM reader_of_keys; SET ROLE reader_of_keys",
        &["! UPDATE on usage_retention"],
        "RESET ROLE; GRANT UPDATE ON public.usage_retention TO reader_of_keys; SET ROLE reader_of_keys",
    ),
    (
        "RESET ROLE; DROP INDEX ix_api_keys_tenant_newest_first; REVOKE CREATE ON SCHEMA public FROM PUBLIC;
         SET ROLE reader_of_keys",
        &[
            "pending api_keys_tenant_newest_first",
            "!! CREATE on schema public",
            "!! ownership of api_keys",
            "index ix_api_keys_tenant_newest_first",
        ],
        "RESET ROLE; DROP OWNED BY reader_of_keys; DROP ROLE reader_of_keys",
    ),
];
