//! What a database of the service may hold that PostgreSQL would refuse a step for. It is reported before anything is
//! changed, and the action removes it.

/// The SQL that adds it to the service's database, the obstacle, and the SQL that removes it; empty if that is the
/// obstacle's action.
pub(super) type Block = (&'static str, &'static str, &'static str);

pub(super) const BLOCKS: &[Block] = &[
    ("CREATE TABLE audit (old api_keys, \"New\" text)", "column public.audit.old", ""),
    ("CREATE TYPE pair AS (old api_keys); CREATE TABLE audit (pairs pair[])", "column public.audit.pairs", ""),
    (
        "DO $$ BEGIN
             EXECUTE (SELECT format('CREATE TYPE of_keys AS (%s)',
                          string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum))
                      FROM pg_attribute WHERE attrelid = 'api_keys'::regclass AND attnum > 0);
         END $$;
         ALTER TABLE api_keys OF of_keys",
        "table api_keys",
        "",
    ),
    (
        "CREATE TABLE all_keys (LIKE api_keys INCLUDING DEFAULTS) PARTITION BY LIST (status);
         ALTER TABLE all_keys ATTACH PARTITION api_keys DEFAULT",
        "table api_keys",
        "",
    ),
    (
        "ALTER TABLE api_keys ADD CONSTRAINT api_keys_created_at_is_set CHECK (created_at > '2000-01-01Z')",
        "constraint api_keys_created_at_is_set on api_keys",
        "ALTER TABLE public.api_keys RENAME CONSTRAINT api_keys_created_at_is_set TO theirs",
    ),
    (
        "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(10) COLLATE loose",
        "column api_keys.key_prefix",
        "",
    ),
    (
        "ALTER TABLE api_keys ADD CONSTRAINT uq_api_keys_key_hash UNIQUE (key_hash) DEFERRABLE",
        "index uq_api_keys_key_hash",
        "ALTER TABLE api_keys DROP CONSTRAINT uq_api_keys_key_hash",
    ),
    (
        "ALTER TABLE api_keys ADD CONSTRAINT uq_api_keys_key_hash UNIQUE (tenant_id, key_hash)",
        "index uq_api_keys_key_hash",
        "ALTER TABLE api_keys DROP CONSTRAINT uq_api_keys_key_hash",
    ),
    // Names that new tables, their indexes and their constraints need.
    ("CREATE TYPE usage_changes AS ENUM ()", "name usage_changes", "DROP TYPE usage_changes"),
    ("CREATE DOMAIN api_key_events AS text", "name api_key_events", "ALTER TYPE api_key_events RENAME TO theirs"),
    ("CREATE SEQUENCE api_key_events", "name api_key_events", "ALTER SEQUENCE api_key_events RENAME TO theirs"),
    ("CREATE VIEW usage_frontier AS SELECT 1", "name usage_frontier", "ALTER VIEW usage_frontier RENAME TO theirs"),
    ("CREATE SEQUENCE usage_frontier", "name usage_frontier", "ALTER SEQUENCE usage_frontier RENAME TO theirs"),
    (
        "ALTER TABLE users RENAME CONSTRAINT users_pkey TO api_key_events_pkey",
        "name api_key_events_pkey",
        "ALTER INDEX api_key_events_pkey RENAME TO theirs",
    ),
    (
        "CREATE INDEX ix_usage_changes_time ON users (email)",
        "name ix_usage_changes_time",
        "ALTER INDEX ix_usage_changes_time RENAME TO theirs",
    ),
    (
        "DROP TABLE proxy_calls; CREATE TYPE proxy_calls AS (id text)",
        "name proxy_calls",
        "ALTER TYPE proxy_calls RENAME TO theirs",
    ),
    (
        "CREATE TABLE __diesel_schema_migrations (id bigint)",
        "table __diesel_schema_migrations",
        "ALTER TABLE __diesel_schema_migrations RENAME TO theirs",
    ),
    (
        "CREATE VIEW __diesel_schema_migrations AS SELECT '1'::varchar AS version",
        "table __diesel_schema_migrations",
        "ALTER VIEW __diesel_schema_migrations RENAME TO theirs",
    ),
    // Columns of other types. The action is followed by what else may be in its way.
    (
        "ALTER TABLE api_keys ALTER COLUMN created_at TYPE timestamp",
        "column api_keys.created_at",
        "ALTER TABLE public.api_keys ALTER COLUMN created_at DROP DEFAULT, ALTER COLUMN created_at \
         TYPE timestamp with time zone USING created_at AT TIME ZONE 'UTC', ALTER COLUMN created_at SET DEFAULT now()",
    ),
    (
        "CREATE TYPE state AS ENUM ('active'); ALTER TABLE api_keys ALTER COLUMN status DROP DEFAULT,
             ALTER COLUMN status TYPE state USING status::state, ALTER COLUMN status SET DEFAULT 'active'",
        "column api_keys.status",
        "ALTER TABLE public.api_keys ALTER COLUMN status DROP DEFAULT, ALTER COLUMN status \
         TYPE character varying(50) USING status::character varying(50), \
         ALTER COLUMN status SET DEFAULT 'active'::character varying",
    ),
    (
        "CREATE DOMAIN note AS json; ALTER TABLE api_keys ALTER COLUMN permissions_json TYPE note USING NULL",
        "column api_keys.permissions_json",
        "ALTER TABLE public.api_keys ALTER COLUMN permissions_json TYPE text USING permissions_json::text",
    ),
    (
        "ALTER TABLE proxy_calls ALTER COLUMN cost_cents TYPE double precision",
        "column proxy_calls.cost_cents",
        "ALTER TABLE public.proxy_calls ALTER COLUMN cost_cents TYPE numeric(10,4) USING cost_cents::numeric(10,4)",
    ),
    (
        "ALTER TABLE api_keys ALTER COLUMN total_requests TYPE integer",
        "column api_keys.total_requests",
        "ALTER TABLE public.api_keys ALTER COLUMN total_requests DROP DEFAULT, ALTER COLUMN total_requests \
         TYPE bigint USING total_requests::bigint, ALTER COLUMN total_requests SET DEFAULT 0",
    ),
    (
        "ALTER TABLE api_keys DROP COLUMN name",
        "column api_keys.name",
        "ALTER TABLE public.api_keys ADD COLUMN name character varying(100);
         ALTER TABLE public.api_keys ALTER COLUMN name SET NOT NULL",
    ),
];
