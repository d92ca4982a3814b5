//! Tenants and keys of every size, among many small ones.

use std::io::Write;

use api_keys_driver::{KeyId, KeysDriver, TenantId};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::{Connection, PgConnection};
use postgres::{Client, NoTls};

/// The time up to which all rows were created.
pub fn now() -> DateTime<Utc> {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

pub fn tenant(keys: u32) -> TenantId {
    format!("{keys:08x}-0000-4000-8000-000000000000").into()
}

pub fn key(tenant_keys: u32, index: u32) -> KeyId {
    format!("{tenant_keys:08x}-0000-4000-8000-{index:012x}").into()
}

/// The key of the tenant `tenant(10_000)` with this number of calls.
pub fn called(calls: u32) -> KeyId {
    format!("ca11ed00-0000-4000-8000-{calls:012x}").into()
}

/// The tenant whose keys the operations are timed on.
pub const TENANT_KEYS: u32 = 100_000;
const SMALL_TENANTS: u32 = 2_000;

pub struct Sizes {
    pub keys: Vec<u32>,
    pub calls: Vec<u32>,
}

/// Loads the keys and calls with COPY, and sets the visibility map as on a server that has been running for some time.
pub fn load(url: &str, sizes: &Sizes) {
    let mut client = Client::connect(url, NoTls).unwrap();
    // The vacuum below marks only rows as visible to all whose commit is on disk.
    client
        .batch_execute("SET synchronous_commit = on; ALTER TABLE proxy_calls SET (autovacuum_enabled = off)")
        .unwrap();
    // These indexes are not read by any statement here, and take most of the time of loading.
    client
        .batch_execute(
            "DROP INDEX ix_proxy_calls_api_key_id, ix_proxy_calls_request_hash, \
             ix_proxy_calls_user_id, ix_proxy_calls_tenant_user, ix_proxy_calls_replay, ix_proxy_calls_tenant_time",
        )
        .unwrap();

    let mut keys = client
        .copy_in(
            "COPY api_keys (id, tenant_id, name, key_prefix, key_hash, status, created_at, last_used_at, total_requests, is_synthetic) FROM STDIN",
        )
        .unwrap();
    let mut write_key = |tenant_id: &TenantId, id: &KeyId, index: u32| {
        let created_at = (now() - TimeDelta::seconds(index.into())).to_rfc3339();
        let used = if index.is_multiple_of(3) { "\\N" } else { created_at.as_str() };
        let synthetic = if index % 50 == 49 { "t" } else { "f" };
        let prefix = format!("sk-live-{:04x}", index & 0xffff);
        writeln!(keys, "{id}\t{tenant_id}\tProduction key {index}\t{prefix}\t{id}\tactive\t{created_at}\t{used}\t{index}\t{synthetic}").unwrap();
    };
    for small in 0..SMALL_TENANTS {
        for index in 0..20 {
            write_key(
                &format!("{small:08x}-5555-4000-8000-000000000000").into(),
                &format!("{small:08x}-5555-4000-8000-{index:012x}").into(),
                small + index * 1000,
            );
        }
    }
    for &size in &sizes.keys {
        for index in 0..size {
            write_key(&tenant(size), &key(size, index), index);
        }
    }
    keys.finish().unwrap();

    let mut calls = client
        .copy_in("COPY proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at) FROM STDIN")
        .unwrap();
    let request = "x".repeat(200);
    let mut write_calls = |tenant_id: &TenantId, id: &KeyId, count: u32| {
        for index in 0..count {
            let created_at = (now() - TimeDelta::seconds(60 * i64::from(index) + 1)).to_rfc3339();
            writeln!(calls, "{id}{index}\t{tenant_id}\t{id}\t/v1/chat/completions\tsmall\th\t{request}\t0.{:04}\t{created_at}", (index * 7 + 3) % 9_973).unwrap();
        }
    };
    for index in 0..1_000 {
        write_calls(&tenant(TENANT_KEYS), &key(TENANT_KEYS, index), 20);
    }
    for &size in &sizes.calls {
        write_calls(&tenant(10_000), &called(size), size);
    }
    calls.finish().unwrap();
    count(url, now() - TimeDelta::hours(1));
    client.batch_execute("DROP INDEX ix_proxy_calls_created_at").unwrap();
    client.batch_execute("VACUUM ANALYZE").unwrap();
}

/// Rolls up usage, as a worker does.
fn count(url: &str, until: DateTime<Utc>) {
    let mut worker = PgConnection::establish(url).unwrap();
    while KeysDriver::new(&mut worker)
        .roll_up_usage(until, 100_000)
        .unwrap()
        .is_none_or(|step| step.counted_to < until)
    {}
}
