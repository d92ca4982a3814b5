//! Both drivers are compared with plain SQL, on data with equal times, NULLs, and keys and calls of every kind.

use api_keys_driver::{ApiKeysFacadeDriver, BigDecimal, KeyStatus, KeyUsageSnapshot, KeysDriver, Page};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Numeric, Text, Timestamptz};

use crate::support::{at, migrated, with};

/// Seven tenants with up to 200 keys, and 6,000 calls; a quarter of the keys ties with another in `created_at`.
const DATA: &str = "
    INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, status, created_at, is_synthetic, is_frozen)
    SELECT 'key-' || n, 'tenant-' || floor(log(n + 1) * 2.9), 'Key ' || n, 'sk', md5(n::text),
           (ARRAY['active', 'active', 'revoked', 'expired', 'Active', ''])[1 + abs(hashint4(n)) % 6],
           timestamptz '2026-01-01Z' + make_interval(secs => abs(hashint4(n / 4) % 4000000) / 3.0),
           hashint4(n + 1) % 5 = 0, hashint4(n + 2) % 4 = 0
    FROM generate_series(1, 300) AS n;
    INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json,
                             cost_cents, was_blocked, created_at)
    SELECT 'call-' || n, CASE WHEN n % 17 = 0 THEN 'tenant-0' ELSE k.tenant_id END,
           CASE WHEN n % 23 <> 0 THEN k.id END, '/', 'm', '', '{}',
           CASE WHEN n % 7 <> 0 THEN (hashint4(n) % 100000000) / 10000.0 END, n % 5 = 0,
           timestamptz '2026-03-01Z' + make_interval(mins => n)
    FROM generate_series(1, 6000) AS n JOIN api_keys AS k ON k.id = 'key-' || 1 + abs(hashint4(n)) % 300;
";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    id: String,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

#[derive(QueryableByName)]
struct Usage {
    #[diesel(sql_type = BigInt)]
    count: i64,
    #[diesel(sql_type = Nullable<Numeric>)]
    spend: Option<BigDecimal>,
}

fn tenants() -> impl Iterator<Item = String> {
    (0..9).map(|tenant| format!("tenant-{tenant}"))
}

fn pages() -> impl Iterator<Item = Page> {
    [(50, 0), (7, 0), (7, 7), (1, 3), (1000, 0), (10, 190), (0, 0)]
        .into_iter()
        .map(|(limit, offset)| Page { limit, offset })
}

fn ids(conn: &mut PgConnection, filter: &str, tenant: &str, page: Page) -> Vec<String> {
    let sql = format!(
        "SELECT id FROM api_keys WHERE tenant_id = $1 AND {filter}
         ORDER BY created_at DESC, id DESC LIMIT {} OFFSET {}",
        page.limit, page.offset
    );
    let rows: Vec<Row> = diesel::sql_query(sql).bind::<Text, _>(tenant).load(conn).unwrap();
    rows.into_iter().map(|row| row.id).collect()
}

fn count(conn: &mut PgConnection, filter: &str, tenant: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM api_keys WHERE tenant_id = $1 AND {filter}");
    diesel::sql_query(sql).bind::<Text, _>(tenant).get_result::<Count>(conn).unwrap().count
}

#[test]
fn pages_and_counts_are_what_plain_sql_says() {
    let (_database, mut conn) = migrated();
    conn.batch_execute(DATA).unwrap();
    let mut seen = 0;
    for tenant in tenants() {
        let tenant_id = tenant.as_str().into();
        let counted = KeysDriver::new(&mut conn).count_keys(&tenant_id).unwrap();
        assert_eq!(counted, count(&mut conn, "true", &tenant), "{tenant}");
        for page in pages() {
            let keys = KeysDriver::new(&mut conn).fetch_keys(&tenant_id, page).unwrap();
            let found: Vec<String> = keys.into_iter().map(|key| key.id.into()).collect();
            assert_eq!(found, ids(&mut conn, "true", &tenant, page), "{tenant} {page:?}");
            seen += found.len();
        }
        for status in [None, Some("active"), Some("revoked"), Some("expired"), Some("Active"), Some("")] {
            let filter = match status {
                Some(status) => format!("NOT is_synthetic AND status = '{status}'"),
                None => "NOT is_synthetic".to_owned(),
            };
            let mut api_keys = ApiKeysFacadeDriver::new(&mut conn);
            let counted = api_keys.count_api_keys(&tenant_id, status.map(KeyStatus::from).as_ref()).unwrap();
            assert_eq!(counted, count(&mut conn, &filter, &tenant), "{tenant} {status:?}");
            for page in pages() {
                let keys = ApiKeysFacadeDriver::new(&mut conn)
                    .fetch_api_keys(&tenant_id, status.map(KeyStatus::from).as_ref(), page)
                    .unwrap();
                let found: Vec<String> = keys.into_iter().map(|key| key.id.into()).collect();
                assert_eq!(found, ids(&mut conn, &filter, &tenant, page), "{tenant} {status:?} {page:?}");
                seen += found.len();
            }
        }
    }
    assert!(seen > 1000, "the data set is thinner than the test thinks: {seen}");
}

#[test]
fn usage_is_what_plain_sql_says() {
    let (_database, mut conn) = migrated();
    conn.batch_execute(DATA).unwrap();
    let start = at("2026-03-01T00:00:00Z");
    let since: [DateTime<Utc>; 4] = [
        start,
        start + TimeDelta::minutes(3000),
        start + TimeDelta::seconds(90_001),
        start + TimeDelta::days(9),
    ];
    let mut calls = 0;
    for (index, tenant) in
        (1..=300).flat_map(|index| [(index, "tenant-0"), (index, "tenant-5"), (index, "tenant-6")])
    {
        let (key, since) = (format!("key-{index}"), since[index % since.len()]);
        let expected: Usage = diesel::sql_query(
            "SELECT count(*) AS count, sum(cost_cents) AS spend FROM proxy_calls
             WHERE tenant_id = $1 AND api_key_id = $2 AND created_at >= $3",
        )
        .bind::<Text, _>(tenant)
        .bind::<Text, _>(&key)
        .bind::<Timestamptz, _>(since)
        .get_result(&mut conn)
        .unwrap();
        let usage =
            KeysDriver::new(&mut conn).fetch_key_usage(&tenant.into(), &key.as_str().into(), since).unwrap();
        calls += usage.request_count;
        let expected = with!(
            KeyUsageSnapshot::default(),
            request_count: expected.count,
            spend_cents: expected.spend.unwrap_or_default(),
        );
        assert_eq!(usage, expected, "{tenant} {key} {since}");
    }
    assert!(calls > 1000, "the data set is thinner than the test thinks: {calls}");
}
