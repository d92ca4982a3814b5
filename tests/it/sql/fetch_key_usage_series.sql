PREPARE fetch_key_usage_series (timestamp with time zone[], text, text, timestamp with time zone, interval, timestamp with time zone) AS
SELECT "start", "calls"."count", "calls"."sum"
FROM
  unnest((SELECT $1)) AS "start"
  CROSS JOIN LATERAL (
    SELECT count(*), sum("cost_cents")
    FROM "proxy_calls"
    WHERE
      "proxy_calls"."tenant_id" = $2
      AND "proxy_calls"."api_key_id" = $3
      AND "proxy_calls"."created_at" >= greatest("start", $4)
      AND "proxy_calls"."created_at" < least("start" + $5, $6)
  ) AS "calls"
ORDER BY "start";

EXPLAIN EXECUTE fetch_key_usage_series ('{"2026-01-01T00:00:00Z","2026-01-02T00:00:00Z","2026-01-03T00:00:00Z","2026-01-04T00:00:00Z","2026-01-05T00:00:00Z","2026-01-06T00:00:00Z","2026-01-07T00:00:00Z"}', '11111111-1111-1111-1111-111111111111', 'key', '2026-01-01T00:00:00Z', '86400000000 microseconds', '2026-01-08T00:00:00Z');
