PREPARE fetch_key_events_head AS
SELECT
  coalesce(
    pg_catalog.hashtextextended(
      pg_catalog.concat_ws(
        '.',
        (SELECT "system_identifier" FROM pg_catalog.pg_control_system()),
        CASE
          WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.lpad(
            pg_catalog.upper(
              pg_catalog.to_hex(
                greatest(
                  (SELECT "timeline_id" FROM pg_catalog.pg_control_checkpoint()),
                  (SELECT "min_recovery_end_timeline" FROM pg_catalog.pg_control_recovery())
                )
              )
            ),
            8,
            '0'
          )
          ELSE pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)
        END,
        ''
      ) || CASE
        WHEN EXISTS (
          SELECT 1
          FROM pg_catalog.pg_class
          WHERE "oid" = pg_catalog.to_regclass('api_keys')
            AND "relkind" IN ('r', 'p')
        ) THEN (
          SELECT pg_catalog.string_agg(pg_catalog.concat_ws(':', "oid", "xmin"), ',' ORDER BY "tgname")
          FROM pg_catalog.pg_trigger
          WHERE
            "tgrelid" = pg_catalog.to_regclass('api_keys')
            AND "tgenabled" IN ('O', 'A')
            AND "tgname" IN (
              '~api_keys_compare',
              '~api_keys_number',
              '~api_keys_number_update',
              '~api_keys_tell',
              '~api_keys_tell_truncated',
              '~api_keys_tell_update'
            )
            AND NOT EXISTS (
              SELECT 1
              FROM pg_catalog.pg_inherits
              WHERE "inhparent" = pg_catalog.to_regclass('api_keys')
            )
            AND NOT EXISTS (
              SELECT 1
              FROM pg_catalog.pg_trigger AS "of_citus"
              WHERE
                "of_citus"."tgrelid" = pg_catalog.to_regclass('api_keys')
                AND "of_citus"."tgname" LIKE 'truncate\_trigger\_%'
                AND "of_citus"."tgisinternal"
            )
          HAVING count(*) = 6
        )
        ELSE pg_catalog.to_regclass('api_keys')::pg_catalog.oid::pg_catalog.text
      END,
      0
    ) & 9223372036854775807,
    0
  ),
  pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::pg_catalog.text::pg_catalog.int8,
  pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL;

EXPLAIN EXECUTE fetch_key_events_head;
