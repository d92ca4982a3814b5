PREPARE fetch_key_history_after (bigint, text, text, bigint, bigint, bigint) AS
SELECT
  $1,
  "api_key_events"."transaction_id",
  "api_key_events"."id",
  "api_key_events"."tenant_id",
  "api_key_events"."key_id",
  "api_key_events"."revision",
  "api_key_events"."kind",
  "api_key_events"."at",
  "api_key_events"."recorded_at",
  "api_key_events"."actor",
  "api_key_events"."reason",
  "api_key_events"."status",
  "api_key_events"."is_frozen",
  "api_key_events"."expires_at"
FROM "api_key_events"
WHERE (
  (("api_key_events"."tenant_id" = $2) AND ("api_key_events"."key_id" = $3))
  AND (ROW ("api_key_events"."revision", "api_key_events"."id") > ROW ($4, $5))
)
ORDER BY "api_key_events"."revision", "api_key_events"."id"
LIMIT $6;

EXPLAIN EXECUTE fetch_key_history_after ('0', '11111111-1111-1111-1111-111111111111', 'key', '-1', '-9223372036854775808', '50');
