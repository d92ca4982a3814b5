PREPARE fetch_key_usage (text, text, timestamp with time zone) AS
SELECT COUNT(*), sum("proxy_calls"."cost_cents")
FROM "proxy_calls"
WHERE (
  (("proxy_calls"."tenant_id" = $1) AND ("proxy_calls"."api_key_id" = $2))
  AND ("proxy_calls"."created_at" >= $3)
);

EXPLAIN EXECUTE fetch_key_usage ('11111111-1111-1111-1111-111111111111', 'key', '2026-01-01T00:00:00Z');
