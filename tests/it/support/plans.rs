//! How the server runs a statement: with which index, whether it reads unneeded rows, and whether it is planned once.
//!
//! A test names the expected lines: `plans_of("fetch_key_by_id").read(&["Index Scan using api_keys_pkey"])`. The
//! statement is then explained for tenants of four kinds, with custom and generic plans, on the tables that the
//! migrations make and on those of the existing service.
//!
//! The data are skewed, so that averages mislead the planner: a tenant with 100,000 keys among 5,000 tenants with 20,
//! two tenants whose newest 100,000 keys are not those that the customer asks for, and a key with most of the calls.

use std::sync::{LazyLock, OnceLock};

use api_keys_driver::{KeyId, KeysDriver, Page, TenantId, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::{Database, PrivateServer};

use super::prepared::{Prepared, prepared_by, replanned};
use super::{at, database_of, eventually, existing_service_in};
use crate::every_method::{Input, METHODS, Method};

pub(crate) const LARGE: &str = "a0000000-0000-0000-0000-000000000000";
const HIDDEN: &str = "b0000000-0000-0000-0000-000000000000";
const REVOKED: &str = "c0000000-0000-0000-0000-000000000000";
const SMALL: &str = "00000007-0000-0000-0000-000000000000";
/// A tenant of each kind, and one of its keys.
const TENANTS: [(&str, &str); 4] = [(LARGE, "a1"), (HIDDEN, "b1"), (REVOKED, "c1"), (SMALL, "s7")];

/// The tables that the planned statements read.
const TABLES: [&str; 5] =
    ["api_keys", "api_key_events", "proxy_calls", "usage_key_buckets", "usage_tenant_buckets"];

/// The expected plans of a method's statement.
#[must_use = "nothing is checked before `read`"]
pub(crate) struct Plans<'a> {
    method: &'static Method,
    tenants: &'static [(&'static str, &'static str)],
    sorts: &'a [&'a str],
    others: &'a [&'a str],
    offset: u32,
    reads_in_vain: bool,
    is_planned_once: bool,
}

/// The plans of a statement, by its name in [`METHODS`].
pub(crate) fn plans_of<'a>(name: &str) -> Plans<'a> {
    let method = METHODS.iter().find(|method| method.name == name);
    Plans::of(method.unwrap_or_else(|| panic!("{name} is not in the list of methods")))
}

impl<'a> Plans<'a> {
    pub(crate) fn of(method: &'static Method) -> Self {
        Self {
            method,
            tenants: &TENANTS,
            sorts: &[],
            others: &[],
            offset: 0,
            reads_in_vain: false,
            is_planned_once: true,
        }
    }

    /// The statement reads or writes so much of a tenant that only a small tenant is tested.
    pub(crate) fn of_a_small_tenant(self) -> Self {
        Self { tenants: &TENANTS[3..], ..self }
    }

    /// A small tenant has so few rows that any scan is good.
    pub(crate) fn of_large_tenants(self) -> Self {
        Self { tenants: &TENANTS[..3], ..self }
    }

    /// Each plan sorts, only by these `Sort Key: ..` lines.
    pub(crate) fn sort_by(self, sorts: &'a [&'a str]) -> Self {
        Self { sorts, ..self }
    }

    /// Some plans read tables by these scans too, or sort by these lines.
    pub(crate) fn or_read(self, others: &'a [&'a str]) -> Self {
        Self { others, ..self }
    }

    /// The statement reads a deep page.
    pub(crate) fn at_offset(self, offset: u32) -> Self {
        Self { offset, ..self }
    }

    /// The statement reads rows that are not in its answer.
    pub(crate) fn read_in_vain(self) -> Self {
        Self { reads_in_vain: true, ..self }
    }

    /// The server plans each call, because the cost depends on the values.
    pub(crate) fn planned_for_each_call(self) -> Self {
        Self { is_planned_once: false, ..self }
    }

    /// Checks that each plan has all of these lines, and no other scans.
    pub(crate) fn read(self, scans: &[&str]) {
        self.read_in(&mut skewed(), scans);
        if let Some(mut conn) = skewed_service() {
            self.read_in(&mut conn, scans);
        }
        if self.is_planned_once {
            self.assert_planned_once();
        }
    }

    fn read_in(&self, conn: &mut PgConnection, scans: &[&str]) {
        for (tenant_id, key_id) in self.tenants {
            for mode in ["force_custom_plan", "force_generic_plan"] {
                let (sql, plan) = explain(conn, self.method, &self.input(tenant_id, key_id, 50), mode);
                let told = format!("{}, {mode} for {tenant_id}\n{sql}\n{plan}", self.method.name);
                self.assert_good(&plan, scans, &told);
            }
        }
    }

    fn input(&self, tenant_id: &str, key_id: &str, limit: u32) -> Input {
        Input { page: Page { limit, offset: self.offset }, ..input(tenant_id, key_id) }
    }

    fn assert_good(&self, plan: &str, scans: &[&str], told: &str) {
        for part in scans.iter().chain(self.sorts) {
            assert!(plan.contains(part), "no {part}: {told}");
        }
        let computed = ["Function Scan on ", "CTE Scan on ", "Subquery Scan on "];
        for line in plan.lines().map(str::trim) {
            let mut known = scans.iter().chain(self.others).chain(&computed);
            assert!(!line.contains("Scan ") || known.any(|scan| line.contains(scan)), "{line}: {told}");
            let mut sorts = self.sorts.iter().chain(self.others);
            assert!(!line.contains("Sort Key: ") || sorts.any(|sort| *sort == line), "{line}: {told}");
            // A few are allowed, because rows of a block in which another test freezes a key are fetched.
            let fetches = line.split_once("Heap Fetches: ").map_or(0, |(_, count)| count.parse().unwrap());
            assert!(fetches < 500, "{line}: {told}");
        }
        assert!(!plan.contains("Gather"), "it takes several processes: {told}");
        assert!(self.reads_in_vain || !has_rows_removed(plan), "rows are read in vain: {told}");
    }

    /// From the sixth call on, the server plans no call, for any tenant and any page size.
    fn assert_planned_once(&self) {
        for (tenant_id, key_id) in self.tenants {
            for limit in [1, 50] {
                let mut conn = skewed();
                let input = self.input(tenant_id, key_id, limit);
                for _ in 0..8 {
                    conn.test_transaction(|conn| (self.method.call)(conn, &input));
                }
                let planned = replanned(&mut conn);
                assert!(planned.is_empty(), "{tenant_id}, pages of {limit}: {planned:#?}");
            }
        }
    }
}

/// The arguments of a method: a cursor and a time in the middle of the keys.
pub(crate) fn input(tenant_id: &str, key_id: &str) -> Input {
    let noon = at("2026-01-01T12:00:00Z");
    Input {
        tenant_id: TenantId::from(tenant_id),
        key_id: KeyId::from(key_id),
        cursor: format!("{:016x}", noon.timestamp_micros()).parse().expect("a cursor"),
        time: noon,
        ..Input::default()
    }
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = diesel::sql_types::Text, column_name = "QUERY PLAN")]
    line: String,
}

/// A method's own statement and its plan with `EXPLAIN ANALYZE`. The transaction is rolled back.
pub(crate) fn explain(
    conn: &mut PgConnection,
    method: &Method,
    input: &Input,
    mode: &str,
) -> (String, String) {
    conn.test_transaction::<_, diesel::result::Error, _>(|conn| {
        let Prepared { name, sql, arguments, .. } = called_and_undone(conn, method, input);
        conn.batch_execute(&format!("SET LOCAL plan_cache_mode = {mode}"))?;
        let explain = "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF)";
        let lines: Vec<Line> =
            diesel::sql_query(format!("{explain} EXECUTE {name}({arguments})")).load(conn)?;
        Ok((sql, lines.into_iter().map(|line| line.line + "\n").collect()))
    })
}

/// Calls the method and rolls back, because a key can be inserted and deleted only once.
fn called_and_undone(conn: &mut PgConnection, method: &Method, input: &Input) -> Prepared {
    let mut prepared = Vec::new();
    let undone: QueryResult<()> = conn.transaction(|conn| {
        prepared = prepared_by(conn, method, input);
        Err(diesel::result::Error::RollbackTransaction)
    });
    assert_eq!(undone, Err(diesel::result::Error::RollbackTransaction));
    prepared.pop().expect("a statement")
}

fn has_rows_removed(plan: &str) -> bool {
    plan.lines().any(|line| line.contains("Rows Removed") && !line.ends_with(": 0"))
}

/// The number of blocks that a plan read.
pub(crate) fn blocks(plan: &str) -> u32 {
    let top = plan.lines().find_map(|line| line.trim().strip_prefix("Buffers: shared ")).expect("buffers");
    top.split([' ', '=']).filter_map(|number| number.parse::<u32>().ok()).sum()
}

/// An empty database on a server of these tests alone. They write many rows in one transaction, and followers of events
/// on the same server would wait for its end.
fn empty_on_own_server() -> (Database, PgConnection) {
    static SERVER: LazyLock<PrivateServer> =
        LazyLock::new(|| PrivateServer::start_new().expect("a private server"));

    database_of(&SERVER)
}

/// The skewed database. Tests only read it, or roll back.
pub(crate) fn skewed() -> PgConnection {
    static DATABASE: OnceLock<Database> = OnceLock::new();
    let fill_one = || {
        let (database, mut conn) = empty_on_own_server();
        migrate(&mut conn).unwrap();
        fill(&mut conn, 100_000);
        database
    };
    DATABASE.get_or_init(fill_one).connect().unwrap()
}

/// A smaller one in the existing service's own tables.
fn skewed_service() -> Option<PgConnection> {
    static DATABASE: OnceLock<Option<Database>> = OnceLock::new();
    let fill_one = || {
        let (database, mut conn) = existing_service_in(empty_on_own_server)?;
        migrate(&mut conn).unwrap();
        conn.batch_execute(&format!(
            "INSERT INTO tenants (id, name, slug)
                 SELECT id, id, id FROM unnest('{{{LARGE},{HIDDEN},{REVOKED}}}'::text[]) AS id
                 UNION ALL SELECT lpad(to_hex(n), 8, '0') || '-0000-0000-0000-000000000000', n::text, n::text
                 FROM generate_series(0, 499) AS n"
        ))
        .unwrap();
        fill(&mut conn, 10_000);
        Some(database)
    };
    Some(DATABASE.get_or_init(fill_one).as_ref()?.connect().unwrap())
}

/// Fills a database with `large` keys for each of three tenants, and 20 keys for each of `large / 20` other tenants.
fn fill(conn: &mut PgConnection, large: u32) {
    // The vacuum below marks only those rows as visible to all whose commit is on disk. The server itself collects no
    // statistics later: the tests change rows and undo it, which would change the plans of the tests after them.
    conn.batch_execute("SET synchronous_commit = on").unwrap();
    for table in TABLES {
        conn.batch_execute(&format!("ALTER TABLE {table} SET (autovacuum_enabled = off)")).unwrap();
    }
    conn.batch_execute(&format!(
        "CREATE TEMP TABLE keys AS
             SELECT 's' || n AS id, lpad(to_hex(n % ({large} / 20)), 8, '0') || '-0000-0000-0000-000000000000' AS tenant_id,
                    n, false AS is_synthetic, CASE n % 9 WHEN 0 THEN 'revoked' ELSE 'active' END AS status
             FROM generate_series(1, {large}) AS n
             UNION ALL SELECT 'a' || n, '{LARGE}', n, false, 'active' FROM generate_series(1, {large}) AS n
             UNION ALL SELECT 'b' || n, '{HIDDEN}', n, n > 20, 'active' FROM generate_series(1, {large}) AS n
             UNION ALL SELECT 'c' || n, '{REVOKED}', n, false, CASE WHEN n > 20 THEN 'revoked' ELSE 'active' END
             FROM generate_series(1, {large}) AS n;
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, status, created_at, is_synthetic,
                 expires_at, last_used_at)
             SELECT id, tenant_id, 'Production', 'sk-live-ab', id, status,
                    timestamptz '2026-01-01 00:00:00Z' + n * interval '1 second', is_synthetic,
                    CASE WHEN n % 2 = 0 THEN timestamptz '2026-01-01 00:00:00Z' + n * interval '3 seconds' END,
                    CASE WHEN n % 3 = 0 THEN timestamptz '2026-01-01 00:00:00Z' + n * interval '2 seconds' END
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
    let until = at("2026-01-03T00:07:00Z");
    eventually("a half of the calls is counted", || {
        let step = KeysDriver::new(conn).roll_up_usage(until, 100_000).unwrap();
        step.is_some_and(|step| step.counted_to == until)
    });
    // Rows are marked as visible to all only when no session has an older snapshot.
    let tables = TABLES.join(",");
    let hidden = format!(
        "SELECT FROM pg_class WHERE oid = ANY ('{{{tables}}}'::regclass[]) AND relallvisible < relpages"
    );
    eventually("all rows are visible", || {
        conn.batch_execute("VACUUM ANALYZE").unwrap();
        diesel::sql_query(&hidden).execute(conn).unwrap() == 0
    });
}
