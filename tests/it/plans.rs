//! How the server answers: by which index, without a sort or a scan of the table, and planned once.
//!
//! On skewed data, where an average says nothing: a tenant with 100,000 keys among 5,000 with 20, two
//! whose newest 100,000 keys are not what the customer asks for, and a key with most of the calls.

use std::sync::OnceLock;

use api_keys_driver::{KeysDriver, Page};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::every_method::{Input, METHODS, Method};
use crate::support::{at, existing_service, key, migrated, statements_of};

const LARGE: &str = "a0000000-0000-0000-0000-000000000000";
const HIDDEN: &str = "b0000000-0000-0000-0000-000000000000";
const REVOKED: &str = "c0000000-0000-0000-0000-000000000000";
const SMALL: &str = "00000007-0000-0000-0000-000000000000";
/// A tenant, one of its keys, and what is told of it when a test fails.
const CASES: [(&str, &str); 4] = [(LARGE, "a1"), (HIDDEN, "b1"), (REVOKED, "c1"), (SMALL, "s7")];

/// The methods whose plans are held elsewhere, on data of their own: `life_plans` and `uses`.
const ELSEWHERE: &[&str] = &[
    "count_keys_by_status",
    "fetch_key_by_hash",
    "fetch_key_events",
    "fetch_key_events_after",
    "fetch_keys_expiring",
    "fetch_keys_unused",
    "insert_key",
    "insert_key_successor",
    "record_key_uses",
    "record_key_uses of two tenants",
    "update_all_keys_revoked",
];

fn methods() -> impl Iterator<Item = &'static Method> + Clone {
    METHODS.iter().filter(|method| !ELSEWHERE.contains(&method.name))
}

/// Fills a database: `large` keys for each of three tenants, 20 for each of a twentieth as many others.
fn fill(conn: &mut PgConnection, large: u32) {
    // The vacuum below marks only those rows as visible to all whose commit is on disk.
    conn.batch_execute("SET synchronous_commit = on").unwrap();
    conn.batch_execute(&format!(
        "CREATE TEMP TABLE keys AS
             SELECT 's' || n AS id, lpad(to_hex(n % ({large} / 20)), 8, '0') || '-0000-0000-0000-000000000000' AS tenant_id,
                    n, false AS is_synthetic, CASE n % 9 WHEN 0 THEN 'revoked' ELSE 'active' END AS status
             FROM generate_series(1, {large}) AS n
             UNION ALL SELECT 'a' || n, '{LARGE}', n, false, 'active' FROM generate_series(1, {large}) AS n
             UNION ALL SELECT 'b' || n, '{HIDDEN}', n, n > 20, 'active' FROM generate_series(1, {large}) AS n
             UNION ALL SELECT 'c' || n, '{REVOKED}', n, false, CASE WHEN n > 20 THEN 'revoked' ELSE 'active' END
             FROM generate_series(1, {large}) AS n;
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, status, created_at, is_synthetic)
             SELECT id, tenant_id, 'Production', 'sk-live-ab', id, status,
                    timestamptz '2026-01-01 00:00:00Z' + n * interval '1 second', is_synthetic
             FROM keys ORDER BY n;
         INSERT INTO proxy_calls
             (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)
             SELECT 'hot' || n, '{LARGE}', 'a1', '', '', '', repeat('x', 400), 0.0123,
                    timestamptz '2026-01-01 00:00:00Z' + n * interval '10 seconds'
             FROM generate_series(1, {large} / 4) AS n
             UNION ALL
             SELECT id || 'x', tenant_id, id, '', '', '', repeat('x', 400), 0.0123,
                    timestamptz '2026-01-01 00:00:00Z' + n * interval '10 seconds'
             FROM keys WHERE n <= {large} / 20;
         DROP TABLE keys;"
    ))
    .unwrap();
    conn.batch_execute("VACUUM ANALYZE api_keys, proxy_calls").unwrap();
}

/// The skewed database that the tests here read, and only read.
fn skewed() -> PgConnection {
    static DATABASE: OnceLock<Database> = OnceLock::new();
    let fill_one = || {
        let (database, mut conn) = migrated();
        fill(&mut conn, 100_000);
        database
    };
    DATABASE.get_or_init(fill_one).connect().unwrap()
}

fn input(tenant_id: &str, key_id: &str) -> Input {
    let noon = at("2026-01-01T12:00:00Z").timestamp_micros();
    Input {
        tenant_id: tenant_id.into(),
        key_id: key(key_id),
        cursor: format!("{noon:016x}").parse().expect("a cursor behind the keys of the afternoon"),
        ..Input::default()
    }
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = diesel::sql_types::Text, column_name = "QUERY PLAN")]
    line: String,
}

/// A method's own statement and how the server answers it, with what that took. Nothing is kept.
fn explain(conn: &mut PgConnection, method: &Method, input: &Input, mode: &str) -> (String, String) {
    let mut answer = (String::new(), String::new());
    conn.test_transaction::<_, diesel::result::Error, _>(|conn| {
        let (called, sent) = statements_of(conn, |conn| (method.call)(conn, input));
        called.unwrap();
        let (sql, binds) = sent.last().unwrap().split_once(" -- binds: ").unwrap();
        let name = prepared::table.filter(prepared::statement.eq(sql)).select(prepared::name);
        let name: String = name.get_result(conn)?;
        conn.batch_execute(&format!("SET LOCAL plan_cache_mode = {mode}"))?;
        let explain = "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF)";
        let lines: Vec<Line> =
            diesel::sql_query(format!("{explain} EXECUTE {name}({})", arguments(binds))).load(conn)?;
        answer = (sql.to_owned(), lines.into_iter().map(|line| line.line + "\n").collect());
        Ok(())
    });
    answer
}

diesel::table! {
    #[sql_name = "pg_prepared_statements"]
    prepared (name) {
        name -> Text,
        statement -> Text,
        generic_plans -> BigInt,
        custom_plans -> BigInt,
    }
}

/// Bind values as they are logged, written as SQL: `[TenantId("x"), 50]` as `'x', '50'`.
pub(crate) fn arguments(binds: &str) -> String {
    let binds =
        binds.replace("PgInterval { microseconds: ", "").replace("000000, days: 0, months: 0 }", " seconds");
    let mut binds =
        binds.strip_prefix('[').and_then(|binds| binds.strip_suffix(']')).expect("a list").to_owned();
    // A list is one value.
    while let (Some(start), Some(end)) = (binds.find('['), binds.find(']')) {
        let list = binds[start + 1..end].replace(", ", ",");
        binds.replace_range(start..=end, &format!("{{{list}}}"));
    }
    let literal = |bind: &str| match bind.split('"').nth(1) {
        _ if bind.starts_with('{') => format!("'{bind}'"),
        Some(text) => format!("'{text}'"),
        None if bind == "None" => "NULL".to_owned(),
        None if ["Active", "Revoked", "Expired"].contains(&bind) => format!("'{}'", bind.to_lowercase()),
        None => format!("'{}'", bind.trim_start_matches("Some(").trim_end_matches(')')),
    };
    binds.split(", ").map(literal).collect::<Vec<_>>().join(", ")
}

/// The only ways into a table that a plan for this statement may have.
fn expected_scans(sql: &str) -> Vec<&'static str> {
    let keys = if !sql.contains("api_keys") {
        None
    } else if sql.contains(r#""api_keys"."id" = $"#) {
        Some("Index Scan using api_keys_pkey")
    } else {
        let index_only = sql.starts_with("SELECT count(*)");
        Some(match (sql.contains("is_synthetic\")"), sql.contains("\"status\" = $"), index_only) {
            (false, _, false) => "Index Scan using ix_api_keys_tenant_newest_first",
            (false, _, true) => "Index Only Scan using ix_api_keys_tenant_newest_first",
            (true, false, false) => "Index Scan using ix_api_keys_tenant_shown_newest_first",
            (true, false, true) => "Index Only Scan using ix_api_keys_tenant_shown_newest_first",
            (true, true, false) => "Index Scan using ix_api_keys_tenant_status_newest_first",
            (true, true, true) => "Index Only Scan using ix_api_keys_tenant_status_newest_first",
        })
    };
    let calls = sql.contains("proxy_calls").then_some("Index Only Scan using ix_proxy_calls_key_usage");
    keys.into_iter().chain(calls).collect()
}

fn assert_good(method: &Method, sql: &str, plan: &str, told: &str) {
    let told = format!("{told}: {}\n{sql}\n{plan}", method.name);
    let expected = expected_scans(sql);
    assert!(!expected.is_empty(), "{told}");
    for scan in &expected {
        assert!(plan.contains(scan), "no {scan}: {told}");
    }
    for line in plan.lines().filter(|line| line.contains("Scan ")) {
        // The rows that a page skips are passed over in the index of the page itself.
        let skips = line.replace("Index Only Scan", "Index Scan");
        let known = expected.iter().any(|scan| line.contains(scan) || skips.contains(scan));
        let is_computed = line.contains("Function Scan on unnest") || line.contains("CTE Scan on locked");
        // Whether a key is there can be seen in any index that holds its id.
        let looks = sql.starts_with("WITH locked") && line.contains("Index Only Scan");
        assert!(known || is_computed || looks, "{line}: {told}");
    }
    for waste in ["Seq Scan", "Bitmap", "Rows Removed", "Gather"] {
        assert!(!plan.contains(waste), "{waste}: {told}");
    }
    assert!(!plan.contains("Sort") || sql.contains("unnest("), "a sort: {told}");
    for fetches in plan.lines().filter_map(|line| line.split_once("Heap Fetches: ")) {
        // Not none: the rows of a block in which another test freezes a key are looked at.
        assert!(fetches.1.parse::<u32>().unwrap() < 500, "{told}");
    }
}

fn assert_all_good(conn: &mut PgConnection) {
    for (tenant_id, key_id) in CASES {
        for mode in ["force_custom_plan", "force_generic_plan"] {
            for method in methods() {
                let (sql, plan) = explain(conn, method, &input(tenant_id, key_id), mode);
                assert_good(method, &sql, &plan, &format!("{mode} for {key_id} of {tenant_id}"));
            }
        }
    }
}

#[test]
fn every_statement_is_answered_by_its_index_whatever_the_tenant() {
    assert_all_good(&mut skewed());
}

#[test]
fn so_it_is_on_the_existing_services_database_with_its_own_indexes() {
    let Some((_database, mut conn)) = existing_service() else { return };
    api_keys_driver::migrate(&mut conn).unwrap();
    conn.batch_execute(&format!(
        "INSERT INTO tenants (id, name, slug)
             SELECT id, id, id FROM unnest('{{{LARGE},{HIDDEN},{REVOKED}}}'::text[]) AS id
             UNION ALL SELECT lpad(to_hex(n), 8, '0') || '-0000-0000-0000-000000000000', n::text, n::text
             FROM generate_series(0, 499) AS n"
    ))
    .unwrap();
    fill(&mut conn, 10_000);
    assert_all_good(&mut conn);
}

#[test]
fn every_statement_keeps_one_plan_after_five_executions_whatever_the_tenant_and_the_page() {
    for (tenant_id, key_id) in CASES {
        for limit in [1, 50] {
            let mut conn = skewed();
            let input = Input { page: Page { limit, offset: 0 }, ..input(tenant_id, key_id) };
            for method in methods().cycle().take(methods().count() * 8) {
                conn.test_transaction(|conn| (method.call)(conn, &input));
            }
            let planned_on: Vec<(String, i64, i64)> = prepared::table
                .filter(prepared::statement.like("%tenant_id%"))
                .filter(prepared::custom_plans.gt(5))
                .select((prepared::statement, prepared::generic_plans, prepared::custom_plans))
                .load(&mut conn)
                .unwrap();
            assert!(planned_on.is_empty(), "{tenant_id}, pages of {limit}: {planned_on:#?}");
        }
    }
}

/// How many pages of the database were read for an answer.
fn blocks(plan: &str) -> u32 {
    let top = plan.lines().find_map(|line| line.trim().strip_prefix("Buffers: shared ")).expect("buffers");
    top.split([' ', '=']).filter_map(|number| number.parse::<u32>().ok()).sum()
}

#[test]
fn the_2000th_page_behind_a_cursor_reads_what_the_first_reads() {
    let mut conn = skewed();
    let method = methods().find(|method| method.name == "fetch_keys_after").unwrap();
    let mut cost = |depth: u32| {
        let mut keys = KeysDriver::new(&mut conn);
        let before = keys.fetch_keys(&LARGE.into(), Page { limit: 1, offset: depth }).unwrap();
        let input = Input { cursor: (&before[0]).into(), ..input(LARGE, "a1") };
        blocks(&explain(&mut conn, method, &input, "force_generic_plan").1)
    };
    let (first, deep) = (cost(0), cost(99_900));
    // A page begins and ends within a block, so one or two more say nothing.
    assert!(deep <= first + first / 5 + 2, "{deep} blocks against {first}");
}

#[test]
fn a_deep_page_by_offset_reads_only_its_own_rows_from_the_table() {
    let mut conn = skewed();
    let page = Page { limit: 50, offset: 90_000 };
    // 90,000 rows would be at least 1,000 blocks of the table, as many again where they lie scattered.
    for method in methods().filter(|method| method.name.starts_with("fetch_keys")) {
        let input = Input { page, ..input(LARGE, "a1") };
        let (sql, plan) = explain(&mut conn, method, &input, "force_generic_plan");
        if sql.contains("OFFSET") {
            assert_good(method, &sql, &plan, "deep");
        }
    }
}

#[test]
fn a_bounded_count_stops_at_the_bound() {
    let mut conn = skewed();
    for method in methods().filter(|method| method.name.ends_with("_up_to")) {
        let input = Input { page: Page { limit: 100, offset: 0 }, ..input(LARGE, "a1") };
        let (_, plan) = explain(&mut conn, method, &input, "force_generic_plan");
        assert!(blocks(&plan) < 10, "{plan}");
    }
}
