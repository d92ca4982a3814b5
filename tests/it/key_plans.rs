//! How the server finds the rows: the generic plans of the statements of a key's life.

use std::time::{Duration, Instant};

use api_keys_driver::{EventPosition, Freeze, KeyHash, KeySuccessor, KeyUse, KeysDriver, Page};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::support::{TENANT, at, key, migrated, tenant};

#[derive(QueryableByName)]
struct PreparedStatement {
    #[diesel(sql_type = diesel::sql_types::Text)]
    name: String,
    #[diesel(sql_type = diesel::sql_types::Integer)]
    parameters: i32,
}

#[derive(QueryableByName)]
struct PlanLine {
    #[diesel(sql_type = diesel::sql_types::Text)]
    #[diesel(column_name = "QUERY PLAN")]
    line: String,
}

/// 30,000 keys of 301 tenants, one of whom has a third of them; frozen and revoked ones among them.
fn crowded() -> (throwaway_postgres::Database, PgConnection) {
    let (database, mut conn) = migrated();
    conn.batch_execute(&format!(
        "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, status, expires_at, last_used_at, created_at)
         SELECT n, CASE WHEN n % 3 = 0 THEN '{TENANT}' ELSE 'tenant ' || n % 300 END, 'Key', 'sk', n,
                CASE WHEN n % 10 = 0 THEN 'revoked' ELSE 'active' END,
                CASE WHEN n % 2 = 0 THEN timestamptz '2026-01-01Z' + n * interval '1 hour' END,
                timestamptz '2026-01-01Z' + n * interval '1 minute', '2026-01-01Z'
         FROM generate_series(1, 30000) AS n;
         ANALYZE api_keys, api_key_events"
    ))
    .unwrap();
    (database, conn)
}

/// The generic plan of the one statement on keys that `call` prepared on a fresh connection.
fn generic_plan(
    database: &throwaway_postgres::Database,
    statement: &str,
    call: fn(&mut PgConnection),
) -> String {
    let mut conn = database.connect().unwrap();
    conn.batch_execute("SET plan_cache_mode = force_generic_plan").unwrap();
    call(&mut conn);
    plan_of_prepared(&mut conn, statement)
}

fn plan_of_prepared(conn: &mut PgConnection, statement: &str) -> String {
    let prepared: PreparedStatement = diesel::sql_query(format!(
        "SELECT name, cardinality(parameter_types) AS parameters FROM pg_prepared_statements
         WHERE statement LIKE '{statement}%' AND statement !~ 'pg_prepared_statements|FOR NO KEY UPDATE$'"
    ))
    .get_result(conn)
    .unwrap();
    let nulls = vec!["NULL"; usize::try_from(prepared.parameters).unwrap()].join(", ");
    let explain = diesel::sql_query(format!("EXPLAIN (COSTS OFF) EXECUTE {} ({nulls})", prepared.name));
    let lines: Vec<PlanLine> = explain.load(conn).unwrap();
    lines.into_iter().map(|PlanLine { line }| line + "\n").collect()
}

fn assert_plan(plan: &str, holds: &[&str], lacks: &[&str]) {
    for part in holds {
        assert!(plan.contains(part), "no {part:?} in\n{plan}");
    }
    for part in lacks {
        assert!(!plan.contains(part), "{part:?} in\n{plan}");
    }
}

#[test]
fn a_key_is_recognised_by_one_probe_of_the_unique_index() {
    let (database, _conn) = crowded();
    let plan = generic_plan(&database, "SELECT", |conn| {
        KeysDriver::new(conn).fetch_key_by_hash(&KeyHash::from("7")).unwrap();
    });
    assert_plan(&plan, &["Index Scan using uq_api_keys_key_hash"], &[]);
}

fn plan_of_uses(tenants: &'static [&str]) -> String {
    let (database, _conn) = crowded();
    let mut conn = database.connect().unwrap();
    conn.batch_execute("SET plan_cache_mode = force_generic_plan").unwrap();
    let batch: Vec<_> = (1..1000)
        .zip(tenants.iter().cycle())
        .map(|(n, tenant_id)| KeyUse {
            tenant_id: (*tenant_id).into(),
            key_id: key(&n.to_string()),
            count: 1,
            at: at("2026-06-01T12:00:00Z"),
        })
        .collect();
    KeysDriver::new(&mut conn).record_key_uses(&batch).unwrap();
    plan_of_prepared(&mut conn, "WITH")
}

#[test]
fn a_batch_of_uses_probes_the_primary_key_and_locks_in_the_order_of_tenant_and_key() {
    for (tenants, order) in [
        (&[TENANT] as &[_], "Sort Key: api_keys_1.id\n"),
        (&[TENANT, "tenant 1"], "Sort Key: api_keys_1.tenant_id, api_keys_1.id\n"),
    ] {
        assert_plan(
            &plan_of_uses(tenants),
            &[
                "LockRows",
                order,
                "Index Scan using api_keys_pkey on api_keys\n",
                "Index Scan using api_keys_pkey on api_keys api_keys_1",
            ],
            &["Seq Scan on api_keys"],
        );
    }
}

#[test]
fn the_keys_of_a_tenant_that_leaves_are_locked_in_the_order_of_their_ids() {
    let (database, _conn) = crowded();
    let plan = generic_plan(&database, "WITH", |conn| {
        KeysDriver::new(conn)
            .update_all_keys_revoked(&"tenant 1".into(), at("2026-06-01T12:00:00Z"), None)
            .unwrap();
    });
    assert_plan(&plan, &["LockRows", "Sort Key: api_keys_1.id"], &["Seq Scan"]);
}

#[test]
fn a_change_of_a_key_probes_the_primary_key() {
    let (database, _conn) = crowded();
    let changes: [fn(&mut PgConnection); 3] = [
        |conn| {
            let freeze = Freeze { at: at("2026-06-01T12:00:00Z"), by: "ops", reason: None };
            update(conn, |keys, key| keys.update_key_frozen_by(key, &freeze));
        },
        |conn| update(conn, |keys, key| keys.update_key_revoked(key, at("2026-06-01T12:00:00Z"), None)),
        |conn| update(conn, |keys, key| keys.update_key_expires_at(key, None)),
    ];
    for change in changes {
        assert_plan(&generic_plan(&database, "UPDATE", change), &["Index Scan using api_keys_pkey"], &[]);
    }
}

#[test]
fn a_successor_probes_the_primary_key_and_is_planned_once() {
    let (database, _conn) = crowded();
    let mut conn = database.connect().unwrap();
    for n in 0..8 {
        let id = format!("successor {n}");
        let new = KeySuccessor::new(key(&id), "sk", id.as_str().into(), at("2026-06-01T12:00:00Z"));
        update(&mut conn, |keys, key| keys.insert_key_successor(&key, &new));
    }
    let kept = "SELECT FROM pg_prepared_statements WHERE statement LIKE 'INSERT%' AND generic_plans = 3";
    assert_eq!(diesel::sql_query(kept).execute(&mut conn).unwrap(), 1);
    let plan = plan_of_prepared(&mut conn, "INSERT");
    assert_plan(&plan, &["Index Scan using api_keys_pkey"], &[]);
}

#[test]
fn a_freeze_is_found_by_the_primary_key() {
    let (database, _conn) = crowded();
    let plan = generic_plan(&database, "SELECT", |conn| {
        KeysDriver::new(conn).fetch_key_freeze(&tenant(), &key("3")).unwrap();
    });
    assert_plan(&plan, &["Index Scan using api_keys_pkey"], &[]);
}

#[test]
fn expiring_keys_are_read_in_the_order_of_their_index() {
    let (database, _conn) = crowded();
    let plan = generic_plan(&database, "SELECT", |conn| {
        KeysDriver::new(conn)
            .fetch_keys_expiring(&tenant(), at("2026-06-01T12:00:00Z"), Page::default())
            .unwrap();
    });
    assert_plan(&plan, &["Limit", "Index Scan using ix_api_keys_tenant_status_expiry"], &["Sort"]);
}

#[test]
fn unused_keys_are_looked_for_among_the_active_ones_of_the_tenant_only() {
    let (database, _conn) = crowded();
    let plan = generic_plan(&database, "SELECT", |conn| {
        KeysDriver::new(conn)
            .fetch_keys_unused(&tenant(), at("2026-06-01T12:00:00Z"), Page::default())
            .unwrap();
    });
    assert_plan(&plan, &["Limit", "ix_api_keys_tenant_status_expiry"], &["Seq Scan"]);
}

#[test]
fn a_count_by_status_reads_the_index_only() {
    let (database, mut conn) = crowded();
    // Rows are visible to all once no other session, such as the server's own, looks at older ones.
    let visible = "SELECT FROM pg_class WHERE oid = 'api_keys'::regclass AND relallvisible = relpages";
    let deadline = Instant::now() + Duration::from_secs(60);
    while diesel::sql_query(visible).execute(&mut conn).unwrap() == 0 {
        assert!(Instant::now() < deadline, "a session holds the vacuum up");
        conn.batch_execute("VACUUM api_keys").unwrap();
    }
    let plan = generic_plan(&database, "SELECT", |conn| {
        KeysDriver::new(conn).count_keys_by_status(&tenant()).unwrap();
    });
    assert_plan(&plan, &["Index Only Scan using ix_api_keys_tenant_status_expiry"], &["Seq Scan"]);
}

#[test]
fn a_history_and_the_next_events_are_read_in_the_order_of_their_indexes() {
    let (database, _conn) = crowded();
    let history = generic_plan(&database, "SELECT", |conn| {
        KeysDriver::new(conn).fetch_key_events(&tenant(), &key("3"), Page::default()).unwrap();
    });
    assert_plan(&history, &["Limit", "Index Scan using ix_api_key_events_history"], &["Sort"]);
    let next = generic_plan(&database, "SELECT", |conn| {
        KeysDriver::new(conn).fetch_key_events_after(EventPosition::default(), 100).unwrap();
    });
    let range = "Index Cond: ((ROW(transaction_id, id) > ROW($1, $2)) AND (transaction_id <";
    assert_plan(&next, &["Limit", "Index Scan using api_key_events_pkey", range], &["Sort"]);
}

fn update(
    conn: &mut PgConnection,
    change: impl for<'c> FnOnce(
        &mut KeysDriver<'c>,
        api_keys_driver::LockedKey<'c>,
    ) -> api_keys_driver::Result<api_keys_driver::KeySnapshot>,
) {
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let locked = keys.fetch_key_for_update(&tenant(), &key("3"))?.expect("a key");
        change(&mut keys, locked)
    })
    .unwrap();
}
