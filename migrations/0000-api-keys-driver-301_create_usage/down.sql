-- Drops the tables, unless they hold the usage of deleted calls, which cannot be counted again.
DO $$
BEGIN
    IF EXISTS (SELECT FROM usage_retention WHERE deleted_to OPERATOR(pg_catalog.>) '-infinity') THEN
        RAISE NOTICE 'the usage tables hold the usage of calls that were deleted: they stay';
        RETURN;
    END IF;

    DROP TABLE usage_changes, usage_key_buckets, usage_tenant_buckets, usage_progress, usage_retention;
    DROP SEQUENCE usage_frontier;
END
$$;
