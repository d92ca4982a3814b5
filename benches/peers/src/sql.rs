//! The statements by hand: those of this crate, so that what is compared is the client.

use std::sync::LazyLock;

const COLUMNS: &str = "id, tenant_id, name, key_prefix, status, is_frozen, frozen_at, created_at, last_used_at, \
                       expires_at, total_requests";
const AT_ANY_TIME: &str =
    "created_at BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')";
const NEWEST_FIRST: &str = "ORDER BY created_at DESC, id DESC";

pub static ONE_KEY: LazyLock<String> =
    LazyLock::new(|| format!("SELECT {COLUMNS} FROM api_keys WHERE tenant_id = $1 AND id = $2"));

pub static PAGE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS} FROM api_keys WHERE tenant_id = $1 AND {AT_ANY_TIME} {NEWEST_FIRST} LIMIT (SELECT $2::int8)"
    )
});

pub static PAGE_WITH_USAGE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT keys.*, calls.* FROM ({}) AS keys CROSS JOIN LATERAL (SELECT count(*), sum(cost_cents) FROM proxy_calls \
         WHERE proxy_calls.tenant_id = $1 AND api_key_id = keys.id AND proxy_calls.created_at >= $3) AS calls \
         {NEWEST_FIRST}",
        *PAGE
    )
});

pub static COUNT: LazyLock<String> =
    LazyLock::new(|| format!("SELECT count(*) FROM api_keys WHERE tenant_id = $1 AND {AT_ANY_TIME}"));

pub static COUNT_UP_TO: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT count(*) FROM (SELECT FROM api_keys WHERE tenant_id = $1 AND {AT_ANY_TIME} LIMIT (SELECT $2::int8)) AS counted"
    )
});

pub const USAGE: &str = "SELECT count(*), sum(cost_cents) FROM proxy_calls \
                         WHERE tenant_id = $1 AND api_key_id = $2 AND created_at >= $3";

/// By the hour.
pub const SERIES: &str = "SELECT start, calls.count, calls.sum FROM unnest(ARRAY(SELECT generate_series($3::timestamptz, $4::timestamptz - interval '1 microsecond', interval '1 hour'))) AS start \
     CROSS JOIN LATERAL (SELECT count(*), sum(cost_cents) FROM proxy_calls WHERE tenant_id = $1 AND api_key_id = $2 \
     AND created_at >= start AND created_at < start + interval '1 hour') AS calls ORDER BY start";

pub static LOCK: LazyLock<String> = LazyLock::new(|| format!("{} FOR NO KEY UPDATE", *ONE_KEY));

pub static FREEZE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "UPDATE api_keys SET is_frozen = true, frozen_at = $3 WHERE tenant_id = $1 AND id = $2 RETURNING {COLUMNS}"
    )
});
