PREPARE fetch_key_events_after (bigint, bigint, bigint) AS
SELECT
  "api_key_events"."transaction_id",
  "api_key_events"."id",
  "api_key_events"."tenant_id",
  "api_key_events"."key_id",
  "api_key_events"."revision",
  "api_key_events"."kind",
  "api_key_events"."at",
  "api_key_events"."actor",
  "api_key_events"."reason",
  "api_key_events"."status",
  "api_key_events"."is_frozen",
  "api_key_events"."expires_at"
FROM "api_key_events"
WHERE (
  (ROW ("api_key_events"."transaction_id", "api_key_events"."id") > ROW ($1, $2))
  AND (
    "api_key_events"."transaction_id" < CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS int8)
  )
)
ORDER BY "api_key_events"."transaction_id", "api_key_events"."id"
LIMIT $3;

EXPLAIN EXECUTE fetch_key_events_after ('0', '0', '50');
