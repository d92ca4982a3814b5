PREPARE compact_key_events (bigint, bigint, bigint, bigint, bigint, timestamp with time zone, bigint, bigint, bigint, bigint) AS
WITH
"server" AS (
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
    ) AS "epoch"
),
"looked_at" AS (
  SELECT
    "transaction_id",
    "id",
    NOT EXISTS (
      SELECT
      FROM "api_keys"
      WHERE
        "api_keys"."tenant_id" = "api_key_events"."tenant_id"
        AND "api_keys"."id" = "api_key_events"."key_id"
    ) AS "is_gone"
  FROM "api_key_events"
  WHERE
    ("transaction_id", "id") > ($1, $2)
    AND ("transaction_id", "id") <= ($3, $4)
    AND "transaction_id" < pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::pg_catalog.text::pg_catalog.int8
  ORDER BY "transaction_id", "id"
  LIMIT $5
),
"deleted" AS (
  DELETE FROM "api_key_events" AS "e"
  USING "looked_at" AS "l"
  WHERE
    "e"."transaction_id" = "l"."transaction_id"
    AND "e"."id" = "l"."id"
    AND "e"."recorded_at" < $6
    AND (SELECT "epoch" FROM "server") IN (
      nullif($7, 0),
      CASE $8 WHEN 0 THEN (SELECT nullif("epoch", 0) FROM "server") END
    )
    AND (SELECT "epoch" FROM "server") IN (
      nullif($9, 0),
      CASE $10 WHEN 0 THEN (SELECT nullif("epoch", 0) FROM "server") END
    )
    AND (
      "l"."is_gone"
      OR EXISTS (
        SELECT
        FROM "api_key_events" AS "newer"
        WHERE
          "newer"."tenant_id" = "e"."tenant_id"
          AND "newer"."key_id" = "e"."key_id"
          AND ("newer"."revision", "newer"."id") > ("e"."revision", "e"."id")
      )
    )
  RETURNING "e"."revision", "l"."is_gone"
),
"past" AS (
  UPDATE "api_key_events_compacted" SET
    "revision" = "gone"."revision"
  FROM (SELECT max("revision") AS "revision" FROM "deleted" WHERE "is_gone") AS "gone"
  WHERE "api_key_events_compacted"."revision" < "gone"."revision"
)
SELECT "epoch", (SELECT count(*) FROM "deleted"), "last"."transaction_id", "last"."id"
FROM
  "server"
  LEFT JOIN LATERAL (
    SELECT "transaction_id", "id"
    FROM "looked_at"
    ORDER BY "transaction_id" DESC, "id" DESC
    LIMIT 1
  ) AS "last" ON true;

EXPLAIN EXECUTE compact_key_events ('0', '0', '0', '0', '50', '2026-01-01T00:00:00Z', '0', '0', '0', '0');
