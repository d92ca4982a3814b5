//! Usage of one key, of a page of keys, and over time.

use api_keys_driver::{Bucket, Error, KeyUsageSnapshot, KeysDriver, Page, UsageBucket};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::support::{CallRow, OTHER, TENANT, at, decimal, key, migrated, tenant, usage_of};

#[test]
fn usage_is_the_sum_of_the_calls_of_the_key_and_tenant_since_the_time() {
    let (_database, mut conn) = migrated();
    let since = at("2026-05-01T00:00:00Z");
    let cost = |text| Some(decimal(text));
    let inside = [
        CallRow { id: "at since", cost_cents: cost("0.0001"), ..CallRow::default() },
        CallRow { id: "no cost", cost_cents: None, ..CallRow::default() },
        CallRow { id: "blocked", was_blocked: Some(true), cost_cents: cost("0.1"), ..CallRow::default() },
        CallRow { id: "unknown", was_blocked: None, cost_cents: cost("0.2"), ..CallRow::default() },
        CallRow {
            id: "replayed",
            replayed_from_id: Some("x"),
            cost_cents: cost("999999.9999"),
            ..CallRow::default()
        },
        CallRow { id: "credit", cost_cents: cost("-0.5"), ..CallRow::default() },
    ];
    for call in inside {
        CallRow { created_at: since, ..call }.insert(&mut conn);
    }
    let outside = [
        CallRow { id: "before", created_at: since - TimeDelta::microseconds(1), ..CallRow::default() },
        CallRow { id: "other key", api_key_id: Some("other"), created_at: since, ..CallRow::default() },
        CallRow { id: "no key", api_key_id: None, created_at: since, ..CallRow::default() },
        CallRow { id: "other tenant", tenant_id: OTHER, created_at: since, ..CallRow::default() },
    ];
    for call in outside {
        CallRow { cost_cents: cost("77"), ..call }.insert(&mut conn);
    }

    let usage = KeysDriver::new(&mut conn).fetch_key_usage(&tenant(), &key("key"), since).unwrap();
    assert_eq!(usage, usage_of(6, "999999.8000"));
}

#[test]
fn usage_without_calls_and_of_calls_without_a_cost_is_zero() {
    let (_database, mut conn) = migrated();
    let since = at("2026-01-01T00:00:00Z");
    let mut keys = KeysDriver::new(&mut conn);
    let none = keys.fetch_key_usage(&tenant(), &key("key"), since).unwrap();
    assert_eq!(none, usage_of(0, "0"));

    CallRow::default().insert(keys.connection());
    let free = keys.fetch_key_usage(&tenant(), &key("key"), since).unwrap();
    assert_eq!(free, usage_of(1, "0"));
}

#[test]
fn a_spend_that_a_double_cannot_hold_is_exact() {
    let (_database, mut conn) = migrated();
    conn.batch_execute(&format!(
        "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents)
         SELECT n, '{TENANT}', 'key', '', '', '', '', 999999.9999 FROM generate_series(1, 20000) AS n"
    ))
    .unwrap();

    let usage = KeysDriver::new(&mut conn)
        .fetch_key_usage(&tenant(), &key("key"), at("2026-01-01T00:00:00Z"))
        .unwrap();
    assert_eq!(usage.spend_cents, decimal("19999999998.0000"));
}

#[test]
fn usage_since_the_earliest_time_counts_all_calls_and_since_the_latest_none() {
    let (_database, mut conn) = migrated();
    CallRow::default().insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    for (since, count) in [(DateTime::<Utc>::MIN_UTC, 1), (DateTime::<Utc>::MAX_UTC, 0)] {
        assert_eq!(keys.fetch_key_usage(&tenant(), &key("key"), since).unwrap().request_count, count);
    }
}

#[test]
fn a_page_with_usage_has_the_keys_of_the_page_and_the_usage_of_each() {
    let (_database, mut conn) = migrated();
    conn.batch_execute(&format!(
        "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, created_at)
         SELECT n, '{TENANT}', '', '', n, timestamptz '2026-01-01 00:00:00Z' + (n / 3) * interval '1 hour'
         FROM generate_series(1, 40) AS n;
         INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)
         SELECT n, CASE n % 11 WHEN 0 THEN '{OTHER}' ELSE '{TENANT}' END, n % 30, '', '', '', '', CASE n % 5 WHEN 0 THEN NULL ELSE n * 0.0101 END,
                timestamptz '2026-01-01 00:00:00Z' + n * interval '1 minute'
         FROM generate_series(1, 1000) AS n"
    ))
    .unwrap();

    // A call was made at exactly this time.
    let since = at("2026-01-01T03:06:00Z");
    let mut keys = KeysDriver::new(&mut conn);
    let pages = [(50, 0), (7, 0), (7, 20), (0, 0), (5, 40), (u32::MAX, 3)];
    for page in pages.map(|(limit, offset)| Page { limit, offset }) {
        let expected: Vec<_> = keys
            .fetch_keys(&tenant(), page)
            .unwrap()
            .into_iter()
            .map(|key| {
                let usage = keys.fetch_key_usage(&tenant(), &key.id, since).unwrap();
                (key, usage)
            })
            .collect();
        assert_eq!(keys.fetch_keys_with_usage(&tenant(), since, page).unwrap(), expected, "{page:?}");
    }
    let all = keys.fetch_keys_with_usage(&tenant(), since, Page::default()).unwrap();
    assert!(all.iter().any(|(_, usage)| usage.request_count > 20), "nothing was used");
    assert!(all.iter().any(|(_, usage)| *usage == KeyUsageSnapshot::default()), "everything was used");
}

fn series(conn: &mut PgConnection, from: &str, to: &str, bucket: Bucket) -> Vec<UsageBucket> {
    KeysDriver::new(conn).fetch_key_usage_series(&tenant(), &key("key"), at(from)..at(to), bucket).unwrap()
}

fn counts(series: &[UsageBucket]) -> Vec<i64> {
    series.iter().map(|bucket| bucket.usage.request_count).collect()
}

fn call(conn: &mut PgConnection, time: &str) {
    CallRow { id: time, created_at: at(time), cost_cents: Some(decimal("0.5")), ..CallRow::default() }
        .insert(conn);
}

#[test]
fn a_series_has_every_bucket_of_the_range_and_each_call_in_one() {
    let (_database, mut conn) = migrated();
    let times = [
        "2026-03-01T23:59:59.999999Z",
        "2026-03-02T00:00:00Z",
        "2026-03-02T00:59:59.999999Z",
        "2026-03-02T02:00:00Z",
        "2026-03-02T03:00:00Z",
    ];
    for time in times {
        call(&mut conn, time);
    }
    CallRow { id: "free", created_at: at("2026-03-02T02:30:00Z"), ..CallRow::default() }.insert(&mut conn);
    for (id, tenant_id, api_key_id) in [("foreign", OTHER, "key"), ("other", TENANT, "other")] {
        let created_at = at("2026-03-02T01:30:00Z");
        CallRow { id, tenant_id, api_key_id: Some(api_key_id), created_at, ..CallRow::default() }
            .insert(&mut conn);
    }

    let hours = series(&mut conn, "2026-03-02T00:00:00Z", "2026-03-02T03:00:00Z", Bucket::Hour);
    let bucket = |start, request_count, spend: &str| UsageBucket {
        start: at(start),
        usage: usage_of(request_count, spend),
    };
    assert_eq!(
        hours,
        [
            bucket("2026-03-02T00:00:00Z", 2, "1.0"),
            bucket("2026-03-02T01:00:00Z", 0, "0"),
            bucket("2026-03-02T02:00:00Z", 2, "0.5"),
        ]
    );
    let days = series(&mut conn, "2026-03-01T00:00:00Z", "2026-03-04T00:00:00Z", Bucket::Day);
    assert_eq!(counts(&days), [1, 5, 0]);
    assert_eq!(days[2].start, at("2026-03-03T00:00:00Z"));
}

#[test]
fn a_range_that_cuts_buckets_counts_only_its_own_calls() {
    let (_database, mut conn) = migrated();
    for minute in 0..180 {
        let time = at("2026-03-02T00:00:00Z") + TimeDelta::minutes(minute);
        call(&mut conn, &time.format("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    let hours = series(&mut conn, "2026-03-02T00:30:00Z", "2026-03-02T02:10:00.000001Z", Bucket::Hour);
    assert_eq!(counts(&hours), [30, 60, 11]);
    assert_eq!(hours[0].start, at("2026-03-02T00:00:00Z"));
    let days = series(&mut conn, "2026-03-02T00:30:00Z", "2026-03-02T00:31:00Z", Bucket::Day);
    assert_eq!((counts(&days), days[0].start), (vec![1], at("2026-03-02T00:00:00Z")));
}

#[test]
fn days_are_utc_days_of_24_hours_in_any_session_time_zone() {
    let (_database, mut conn) = migrated();
    for day in 27..=31 {
        call(&mut conn, &format!("2026-03-{day}T23:30:00Z"));
    }
    conn.batch_execute("SET TIME ZONE 'Europe/Berlin'").unwrap();
    let days = series(&mut conn, "2026-03-27T00:00:00Z", "2026-04-02T00:00:00Z", Bucket::Day);
    assert_eq!(counts(&days), [1, 1, 1, 1, 1, 0]);
    let starts: Vec<_> = days.iter().map(|day| day.start).collect();
    assert_eq!(starts[4], at("2026-03-31T00:00:00Z"));
    assert!(starts.is_sorted());
}

#[test]
fn buckets_before_1970_are_aligned_to_the_clock_too() {
    let (_database, mut conn) = migrated();
    call(&mut conn, "1969-12-31T22:30:00Z");
    let hours = series(&mut conn, "1969-12-31T22:15:00Z", "1970-01-01T00:00:00Z", Bucket::Hour);
    assert_eq!((counts(&hours), hours[0].start), (vec![1, 0], at("1969-12-31T22:00:00Z")));
}

#[test]
fn an_empty_range_and_one_that_runs_backwards_have_no_buckets() {
    let (_database, mut conn) = migrated();
    call(&mut conn, "2026-03-02T00:00:00Z");
    let now = "2026-03-02T00:00:00Z";
    assert!(series(&mut conn, now, now, Bucket::Hour).is_empty());
    assert!(series(&mut conn, "2026-03-03T00:00:00Z", now, Bucket::Hour).is_empty());
    assert!(
        series(&mut conn, "2026-03-02T00:00:00.0000001Z", "2026-03-02T00:00:00.0000009Z", Bucket::Day)
            .is_empty()
    );
    assert_eq!(counts(&series(&mut conn, now, "2026-03-02T00:00:00.000001Z", Bucket::Day)), [1]);
}

#[test]
fn a_series_of_too_many_buckets_is_refused() {
    let (_database, mut conn) = migrated();
    let mut keys = KeysDriver::new(&mut conn);
    let from = at("2026-01-01T00:00:00Z");
    let mut fetch = |range, bucket| keys.fetch_key_usage_series(&tenant(), &key("key"), range, bucket);

    let most = fetch(from..from + TimeDelta::hours(Bucket::MAX_BUCKETS), Bucket::Hour).unwrap();
    assert_eq!(i64::try_from(most.len()), Ok(Bucket::MAX_BUCKETS));
    let one_more = from + TimeDelta::hours(Bucket::MAX_BUCKETS) + TimeDelta::microseconds(1);
    let refused = fetch(from..one_more, Bucket::Hour);
    assert!(matches!(refused, Err(Error::TooManyBuckets(10_001))), "{refused:?}");
    let all_of_time = DateTime::<Utc>::MIN_UTC..DateTime::<Utc>::MAX_UTC;
    assert!(matches!(fetch(all_of_time, Bucket::Day), Err(Error::TooManyBuckets(_))));
}
