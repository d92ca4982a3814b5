//! The indexes that usage is read from, and that it is planned once, on skewed data of which half is counted.

use api_keys_driver::{KeysDriver, Page};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::every_method::{Input, METHODS};
use crate::support::plans::{LARGE, blocks, explain, input, skewed};
use crate::support::prepared::replanned;
use crate::support::{at, eventually, migrated_apart};

const SMALL: &str = "00000007-0000-0000-0000-000000000000";
const CALLS: &str = "using ix_proxy_calls_key_usage on proxy_calls";
const BUCKETS: &str = "Index Only Scan using usage_key_buckets_pkey";

/// Checks that the plans of a statement have all of these lines, and read growing tables only with an index.
fn assert_reads(name: &str, scans: &[&str]) {
    let method = METHODS.iter().find(|method| method.name == name).expect(name);
    let mut conn = skewed();
    for (tenant_id, key_id) in [(LARGE, "a1"), (LARGE, "a77"), (SMALL, "s7")] {
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let (sql, plan) = explain(&mut conn, method, &input(tenant_id, key_id), mode);
            let told = format!("{name}, {mode} for {key_id}\n{sql}\n{plan}");
            for scan in scans {
                assert!(plan.contains(scan), "no {scan}: {told}");
            }
            for waste in ["Gather", "JIT", "Seq Scan on proxy_calls"] {
                assert!(!plan.contains(waste), "{waste}: {told}");
            }
            for table in ["usage_key_buckets", "usage_tenant_buckets", "proxy_calls", "api_keys"] {
                assert!(!plan.contains(&format!("Seq Scan on {table}")), "{table}: {told}");
            }
            for line in plan.lines() {
                let fetches =
                    line.split_once("Heap Fetches: ").map_or(0, |(_, count)| count.parse().unwrap());
                assert!(fetches < 500, "{line}: {told}");
            }
        }
    }
}

fn assert_planned_once(name: &str) {
    let method = METHODS.iter().find(|method| method.name == name).expect(name);
    for (tenant_id, key_id) in [(LARGE, "a1"), (SMALL, "s7")] {
        for limit in [1, 50] {
            let mut conn = skewed();
            let input = Input { page: Page { limit, offset: 0 }, ..input(tenant_id, key_id) };
            for _ in 0..8 {
                conn.test_transaction(|conn| (method.call)(conn, &input));
            }
            let planned = replanned(&mut conn);
            assert!(planned.is_empty(), "{name} of {tenant_id}, {limit}: {planned:#?}");
        }
    }
}

#[test]
fn usage_of_a_key_is_read_only_from_indexes() {
    for name in ["fetch_key_usage", "fetch_key_usage_series", "fetch_key_usage_between"] {
        assert_reads(name, &[CALLS, BUCKETS]);
        assert_planned_once(name);
    }
    for name in ["fetch_keys_with_usage", "fetch_keys_with_usage.offset"] {
        assert_reads(name, &[CALLS, BUCKETS, "Index Scan using ix_api_keys_tenant_newest_first"]);
        assert_planned_once(name);
    }
}

#[test]
fn usage_of_a_tenant_is_read_only_from_indexes() {
    assert_reads("fetch_tenant_usage", &["Index Only Scan using usage_tenant_buckets_pkey"]);
    assert_planned_once("fetch_tenant_usage");
    assert_reads("fetch_tenant_usage_by_key", &["using ix_usage_key_buckets_days"]);
    assert_planned_once("fetch_tenant_usage_by_key");
}

#[test]
fn usage_of_a_tenant_that_has_all_calls_reads_no_index_of_its_keys() {
    let (_database, mut conn) = migrated_apart();
    // Without the indexes that no statement here reads, because they take most of the time of the inserts.
    conn.batch_execute(&format!(
        "DROP INDEX ix_proxy_calls_api_key_id, ix_proxy_calls_request_hash, ix_proxy_calls_user_id,
             ix_proxy_calls_tenant_user, ix_proxy_calls_replay;
         SET synchronous_commit = on;
         INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)
         SELECT n, '{LARGE}', 'a' || n % 3, '', '', '', repeat('x', 400), 0.01,
                timestamptz '2026-01-01 00:00:00Z' + n * interval '10 seconds'
         FROM generate_series(1, 200000) AS n"
    ))
    .unwrap();
    let until = at("2026-01-24T00:00:00Z");
    eventually("all is counted", || {
        let step = KeysDriver::new(&mut conn).roll_up_usage(until, 50_000).unwrap();
        step.is_some_and(|step| step.counted_to == until)
    });
    conn.batch_execute("VACUUM ANALYZE").unwrap();
    for name in ["fetch_tenant_usage", "fetch_tenant_usage_by_key"] {
        let method = METHODS.iter().find(|method| method.name == name).expect(name);
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let (sql, plan) = explain(&mut conn, method, &input(LARGE, "a1"), mode);
            assert!(!plan.contains("ix_proxy_calls_key_usage"), "{name}, {mode}\n{sql}\n{plan}");
            assert!(blocks(&plan) < 1_000, "{name}, {mode}\n{plan}");
        }
    }
}

#[test]
fn the_maintenance_reads_only_the_calls_of_its_step() {
    for name in ["roll_up_usage", "delete_calls_before"] {
        assert_reads(name, &["ix_proxy_calls_created_at"]);
        assert_planned_once(name);
    }
    for name in ["recount_usage", "fetch_usage_drift", "retire_calls_before"] {
        assert_planned_once(name);
    }
}

#[test]
fn calls_in_a_bucket_are_not_read_again() {
    let method = METHODS.iter().find(|method| method.name == "fetch_key_usage").unwrap();
    let hot = input(LARGE, "a1");
    let (_, plan) = explain(&mut skewed(), method, &hot, "force_generic_plan");
    // 18,000 calls since then, of which 13,000 are counted.
    assert!(blocks(&plan) < 200, "{plan}");
}
