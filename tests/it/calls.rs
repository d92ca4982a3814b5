//! Inserting calls: what is stored and what is refused, and that no call is stored twice.

use api_keys_driver::{BigDecimal, Error, KeyUsageSnapshot, KeysDriver, NewCall};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    OTHER, TENANT, at, decimal, key, longest, migrated, other, plans_of, statements_of, tenant, with,
};

fn new_call(id: &str) -> NewCall {
    NewCall::new(tenant(), id, key("key"), at("2026-01-01T00:00:00Z"))
}

fn priced(id: &str, cost: &str) -> NewCall {
    NewCall { cost_cents: Some(decimal(cost)), ..new_call(id) }
}

#[derive(Debug, QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    row: String,
}

fn row(conn: &mut PgConnection, id: &str) -> String {
    let row: Row = diesel::sql_query("SELECT to_jsonb(c)::text AS row FROM proxy_calls c WHERE id = $1")
        .bind::<Text, _>(id)
        .get_result(conn)
        .unwrap();
    row.row
}

#[test]
fn a_call_is_stored_with_every_column_and_omitted_fields_are_null() {
    let (_database, mut conn) = migrated();
    let full = NewCall {
        user_id: Some("user".into()),
        endpoint: "/v1/chat/completions".into(),
        model: "small".into(),
        request_hash: "1".repeat(64),
        request_json: "{\"a\": \"'\\\\\"}".into(),
        response_hash: Some("2".into()),
        response_json: Some("NULL".into()),
        status_code: Some(200),
        error_code: Some("none".into()),
        input_tokens: Some(i32::MAX),
        output_tokens: Some(0),
        cost_cents: Some(decimal("999999.9999")),
        policy_decisions_json: Some("[]".into()),
        was_blocked: Some(true),
        block_reason: Some("limit".into()),
        latency_ms: Some(12),
        upstream_latency_ms: Some(11),
        replay_eligible: Some(false),
        replayed_from_id: Some("other".into()),
        ..new_call("full")
    };
    assert_eq!(KeysDriver::new(&mut conn).insert_calls(&[full, new_call("bare")]).unwrap(), 2);
    conn.batch_execute(
        r#"DO $$ BEGIN ASSERT (SELECT c = row('full', '11111111-1111-1111-1111-111111111111', 'key',
             '/v1/chat/completions', 'small', repeat('1', 64), '{"a": "''\\"}', '2', 'NULL', 200, 'none', 2147483647, 0,
             999999.9999, '[]', true, 'limit', 12, 11, false, 'other', timestamptz '2026-01-01Z', 'user')::proxy_calls
             FROM proxy_calls c WHERE id = 'full'); END $$"#,
    )
    .unwrap();
    let bare = row(&mut conn, "bare");
    assert_eq!(bare.matches("null").count(), 15, "{bare}");
}

#[test]
fn a_batch_that_is_sent_twice_is_stored_once() {
    let (_database, mut conn) = migrated();
    let mut keys = KeysDriver::new(&mut conn);
    let batch = [priced("a", "1.5"), priced("b", "0.0001")];
    assert_eq!(keys.insert_calls(&batch).unwrap(), 2);
    let since = batch[0].created_at;
    let longer = [
        priced("b", "99"),
        priced("c", "2"),
        priced("c", "3"),
        NewCall { tenant_id: other(), ..priced("a", "7") },
    ];
    assert_eq!(keys.insert_calls(&longer).unwrap(), 1);
    assert_eq!(
        keys.fetch_key_usage(&tenant(), &key("key"), since).unwrap(),
        with!(KeyUsageSnapshot::default(), request_count: 3, spend_cents: decimal("3.5001"))
    );
    assert_eq!(keys.fetch_key_usage(&other(), &key("key"), since).unwrap(), KeyUsageSnapshot::default());
}

#[test]
fn a_batch_may_span_tenants_and_an_empty_one_sends_nothing() {
    let (_database, mut conn) = migrated();
    let batch = [new_call("a"), NewCall { tenant_id: OTHER.into(), ..new_call("b") }];
    assert_eq!(KeysDriver::new(&mut conn).insert_calls(&batch).unwrap(), 2);
    for tenant_id in [TENANT, OTHER] {
        let used =
            KeysDriver::new(&mut conn).fetch_key_usage(&tenant_id.into(), &key("key"), batch[0].created_at);
        assert_eq!(used.unwrap().request_count, 1);
    }
    let (inserted, sent) = statements_of(&mut conn, |conn| KeysDriver::new(conn).insert_calls(&[]));
    assert_eq!((inserted.unwrap(), sent.len()), (0, 0));
}

#[test]
fn any_number_of_calls_is_one_prepared_statement() {
    let (_database, mut conn) = migrated();
    for size in [1_u32, 2, 5_000] {
        let batch: Vec<_> = (0..size).map(|n| priced(&format!("{size}-{n}"), "0.0001")).collect();
        let (inserted, sent) = statements_of(&mut conn, |conn| KeysDriver::new(conn).insert_calls(&batch));
        assert_eq!((inserted.unwrap(), sent.len()), (i64::from(size), 1));
    }
    let prepared = "SELECT FROM pg_prepared_statements WHERE statement LIKE 'INSERT%'";
    assert_eq!(diesel::sql_query(prepared).execute(&mut conn).unwrap(), 1);
}

#[test]
fn sums_of_any_costs_are_exact_to_the_last_digit() {
    let (_database, conn) = migrated();
    let costs = proptest::collection::vec(proptest::option::of(-9_999_999_999_i64..=9_999_999_999), 0..40);
    let conn = std::cell::RefCell::new(conn);
    TestRunner::new(Config { cases: 32, failure_persistence: None, ..Config::default() })
        .run(&costs, |costs| {
            conn.borrow_mut().test_transaction::<_, Error, _>(|conn| {
                let batch: Vec<_> = costs
                    .iter()
                    .enumerate()
                    .map(|(index, cost)| NewCall {
                        cost_cents: cost.map(|cost| BigDecimal::new(cost.into(), 4)),
                        ..new_call(&index.to_string())
                    })
                    .collect();
                let mut keys = KeysDriver::new(conn);
                keys.insert_calls(&batch)?;
                let used = keys.fetch_key_usage(&tenant(), &key("key"), at("2026-01-01T00:00:00Z"))?;
                let sum = BigDecimal::new(costs.iter().flatten().sum::<i64>().into(), 4);
                assert_eq!((used.request_count, used.spend_cents), (batch.len().try_into().unwrap(), sum));
                Ok(())
            });
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_cost_that_the_column_would_round_is_refused_with_the_calls_position() {
    let (_database, mut conn) = migrated();
    for cost in ["0.00001", "1000000", "-1000000", "1e300000000", "1e-300000000"] {
        let batch = [new_call("a"), new_call("b"), priced("c", cost)];
        let (refused, sent) = statements_of(&mut conn, |conn| KeysDriver::new(conn).insert_calls(&batch));
        let Err(Error::InBatch { index: 2, source }) = refused else { panic!("{cost}: {refused:?}") };
        assert!(matches!(*source, Error::TooManyDigits { column: "cost_cents" }), "{cost}: {source:?}");
        assert!(sent.is_empty());
    }
    let exact = ["-0", "1.50000000", "-999999.9999", "1e5"].map(|cost| priced(cost, cost));
    assert_eq!(KeysDriver::new(&mut conn).insert_calls(&exact).unwrap(), 4);
}

type Set = fn(&mut NewCall, String);

const TEXTS: [(&str, Set); 14] = [
    ("tenant_id", |call, text| call.tenant_id = text.into()),
    ("id", |call, text| call.id = text),
    ("api_key_id", |call, text| call.key_id = Some(text.into())),
    ("user_id", |call, text| call.user_id = Some(text)),
    ("endpoint", |call, text| call.endpoint = text),
    ("model", |call, text| call.model = text),
    ("request_hash", |call, text| call.request_hash = text),
    ("request_json", |call, text| call.request_json = text),
    ("response_hash", |call, text| call.response_hash = Some(text)),
    ("response_json", |call, text| call.response_json = Some(text)),
    ("error_code", |call, text| call.error_code = Some(text)),
    ("policy_decisions_json", |call, text| call.policy_decisions_json = Some(text)),
    ("block_reason", |call, text| call.block_reason = Some(text)),
    ("replayed_from_id", |call, text| call.replayed_from_id = Some(text)),
];

#[test]
fn a_text_of_a_call_is_stored_unchanged_or_refused_with_its_column() {
    let (_database, mut conn) = migrated();
    for (column, set) in TEXTS {
        let length = longest(&mut conn, "proxy_calls", column);
        let insert = |conn: &mut PgConnection, text: &str| {
            let mut call = new_call("call");
            set(&mut call, text.into());
            statements_of(conn, |conn| KeysDriver::new(conn).insert_calls(&[call]))
        };
        if let Some(limit) = length {
            for long in ["ß".repeat(limit + 1), "x".repeat(limit) + " "] {
                let (refused, sent) = insert(&mut conn, &long);
                let Err(Error::InBatch { index: 0, source }) = refused else {
                    panic!("{column}: {refused:?}")
                };
                assert!(
                    matches!(*source, Error::TooLong { column: of, limit: at } if (of, at) == (column, limit)),
                    "{column}: {source:?}"
                );
                assert!(sent.is_empty());
            }
            let longest = "ß".repeat(limit - 1) + " ";
            conn.test_transaction::<_, Error, _>(|conn| {
                assert_eq!(insert(conn, &longest).0?, 1);
                let stored = format!("SELECT FROM proxy_calls WHERE {column} = $1");
                assert_eq!(diesel::sql_query(stored).bind::<Text, _>(&longest).execute(conn)?, 1, "{column}");
                Ok(())
            });
        }
        let (refused, _) = insert(&mut conn, "\0");
        let Err(Error::InBatch { index: 0, source }) = refused else { panic!("{column}: {refused:?}") };
        assert!(matches!(*source, Error::NulByte { column: of } if of == column), "{source:?}");
    }
}

#[test]
fn a_call_with_a_time_out_of_range_is_stored_as_infinity() {
    let (_database, mut conn) = migrated();
    let calls = [
        NewCall { created_at: DateTime::<Utc>::MAX_UTC, ..new_call("last") },
        NewCall { created_at: DateTime::<Utc>::MIN_UTC, ..new_call("first") },
        NewCall { created_at: DateTime::<Utc>::MAX_UTC - TimeDelta::days(1), ..new_call("late") },
    ];
    assert_eq!(KeysDriver::new(&mut conn).insert_calls(&calls).unwrap(), 3);
    assert!(row(&mut conn, "last").contains("\"infinity\""));
}

#[test]
fn inserts_of_calls_read_no_table() {
    plans_of("insert_calls").read(&[]);
}
