//! Usage in tests: calls to count, and a comparison of every method with the plain sums.

use std::ops::Range;

use api_keys_driver::{KeyUsageSnapshot, KeysDriver, Page, UsageRollUp};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Numeric};

use super::{CallRow, KeyRow, OTHER, TENANT, at, decimal, eventually, key, tenant};

/// Does one step of the maintenance.
pub(crate) fn step(conn: &mut PgConnection, until: &str) -> UsageRollUp {
    loop {
        let step = KeysDriver::new(conn).roll_up_usage(at(until), 1_000).unwrap().expect("no other worker");
        if !step.is_behind {
            return step;
        }
    }
}

/// Counts and merges everything. Transactions of other tests may be open for a while.
pub(crate) fn roll_up(conn: &mut PgConnection, until: &str) {
    eventually("all is counted", || step(conn, until).counted_to >= at(until));
}

pub(crate) fn call(conn: &mut PgConnection, id: &str, time: &str, cost: &str) {
    CallRow { id, created_at: at(time), cost_cents: Some(decimal(cost)), ..CallRow::default() }.insert(conn);
}

pub(crate) fn usage(conn: &mut PgConnection, since: &str) -> (i64, String) {
    let usage = KeysDriver::new(conn).fetch_key_usage(&tenant(), &key("key"), at(since)).unwrap();
    (usage.request_count, usage.spend_cents.normalized().to_string())
}

#[derive(QueryableByName, Debug, PartialEq)]
pub(crate) struct Plain {
    #[diesel(sql_type = BigInt)]
    calls: i64,
    #[diesel(sql_type = Nullable<Numeric>)]
    spend: Option<api_keys_driver::BigDecimal>,
}

/// The plain sum over the calls.
pub(crate) fn plain(conn: &mut PgConnection, whose: &str, range: &Range<DateTime<Utc>>) -> KeyUsageSnapshot {
    let sql = format!(
        "SELECT count(*) AS calls, sum(cost_cents) AS spend FROM proxy_calls
         WHERE tenant_id = '{TENANT}' AND {whose} AND created_at >= '{}' AND created_at < '{}'",
        range.start, range.end
    );
    let Plain { calls, spend } = diesel::sql_query(sql).get_result(conn).unwrap();
    let mut usage = KeyUsageSnapshot::default();
    usage.request_count = calls;
    usage.spend_cents = spend.unwrap_or_default();
    usage
}

/// How many changes are waiting to be merged.
pub(crate) fn changes(conn: &mut PgConnection) -> usize {
    diesel::sql_query("SELECT FROM usage_changes").execute(conn).unwrap()
}

/// Compares every method with the plain sums, for times on and next to the edges of quarter hours.
pub(crate) fn assert_exact(conn: &mut PgConnection) {
    let never = at("2099-01-01T00:00:00Z");
    let quarter = at("2026-03-02T12:15:00Z");
    let around = [-86_400, -43_200, -900, -450, -449, -1, 0, 1, 449, 450, 451, 899, 900, 3_600, 86_400];
    let moments: Vec<_> = around.iter().map(|&seconds| quarter + TimeDelta::seconds(seconds)).collect();
    for since in &moments {
        let range = *since..never;
        let expected = plain(conn, "api_key_id = 'key'", &range);
        let of_tenant = plain(conn, "true", &range);
        let mut keys = KeysDriver::new(conn);
        assert_eq!(keys.fetch_key_usage(&tenant(), &key("key"), *since).unwrap(), expected, "{since}");
        assert_eq!(keys.fetch_tenant_usage(&tenant(), *since).unwrap(), of_tenant, "{since}");
        let page = keys.fetch_keys_with_usage(&tenant(), *since, Page::default()).unwrap();
        assert_eq!(page.iter().find(|(row, _)| row.id == key("key")).unwrap().1, expected, "{since}");
        for to in moments.iter().filter(|to| *to >= since) {
            let range = *since..*to;
            let expected = plain(conn, "api_key_id = 'key'", &range);
            let mut keys = KeysDriver::new(conn);
            let by_key = keys.fetch_tenant_usage_by_key(&tenant(), range.clone(), 10).unwrap();
            let found = by_key.into_iter().find(|(id, _)| *id == key("key")).map(|(_, usage)| usage);
            assert_eq!(found.unwrap_or_default(), expected, "{range:?}");
        }
    }
    let sums = KeysDriver::new(conn).fetch_key_usage_between(&tenant(), &key("key"), &moments).unwrap();
    for (range, sum) in moments.windows(2).zip(sums) {
        assert_eq!(sum, plain(conn, "api_key_id = 'key'", &(range[0]..range[1])), "{range:?}");
    }
    assert!(KeysDriver::new(conn).fetch_usage_drift(DateTime::<Utc>::MIN_UTC..never, 5).unwrap().is_empty());
}

/// Inserts a call every 100 seconds for two days. Every third one has another key, and every seventh has no key.
pub(crate) fn fill(conn: &mut PgConnection) {
    KeyRow::default().insert(conn);
    conn.batch_execute(&format!(
        "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)
         SELECT 'c' || n, CASE n % 13 WHEN 0 THEN '{OTHER}' ELSE '{TENANT}' END,
                CASE WHEN n % 7 = 0 THEN NULL WHEN n % 3 = 0 THEN 'other' ELSE 'key' END, '', '', '', '',
                CASE n % 5 WHEN 0 THEN NULL ELSE n * 0.0101 END,
                timestamptz '2026-03-01 12:00:00Z' + n * interval '100 seconds' + n % 3 * interval '1 microsecond'
         FROM generate_series(0, 1728) AS n"
    ))
    .unwrap();
}
