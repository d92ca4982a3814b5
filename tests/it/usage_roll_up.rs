//! Usage from buckets: counting and merging calls changes no answer.

use api_keys_driver::{Bucket, Error, KeyUsageSnapshot, KeysDriver, Page, migrate};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::support::usage::{assert_exact, call, changes, fill, plain, roll_up, step, usage};
use crate::support::{TENANT, at, eventually, key, migrated, migrated_apart, tenant};

#[test]
fn counting_up_to_any_time_changes_no_answer() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    assert_exact(&mut conn);
    for until in
        ["2026-03-01T00:00:00Z", "2026-03-02T12:14:59Z", "2026-03-02T12:17:07Z", "2026-03-02T12:30:00Z"]
    {
        roll_up(&mut conn, until);
        assert_exact(&mut conn);
    }
    // A frontier never goes back, and a different grace is not an error.
    assert_eq!(step(&mut conn, "2026-03-01T00:00:00Z").counted_to, at("2026-03-02T12:30:00Z"));
}

#[test]
fn small_steps_count_as_a_large_one_does() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    let (mut steps, mut counted) = (0, 0);
    eventually("all is counted", || {
        let step =
            KeysDriver::new(&mut conn).roll_up_usage(at("2026-03-02T12:20:00Z"), 100).unwrap().unwrap();
        assert!(step.calls_counted <= 100, "{step:?}");
        (steps, counted) = (steps + 1, counted + step.calls_counted);
        if step.calls_counted > 0 && steps % 2 == 0 {
            assert_exact(&mut conn);
        }
        step.counted_to == at("2026-03-02T12:20:00Z")
    });
    assert_eq!(counted, 876);
    assert_exact(&mut conn);
}

#[test]
fn writes_before_the_frontier_count_at_once_and_after_merging() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    for write in [
        "INSERT INTO proxy_calls SELECT * FROM jsonb_populate_record((SELECT c FROM proxy_calls AS c WHERE id = 'c800'),
            '{\"id\": \"late\", \"created_at\": \"2026-03-02T12:20:00Z\"}')",
        "UPDATE proxy_calls SET cost_cents = 7 WHERE id IN ('c860', 'c870', 'c880', 'c890')",
        "UPDATE proxy_calls SET api_key_id = 'key' WHERE id IN ('c861', 'c867', 'c870')",
        "UPDATE proxy_calls SET tenant_id = 'nobody' WHERE id = 'c862'",
        "UPDATE proxy_calls SET created_at = created_at + interval '15 minutes' WHERE id IN ('c863', 'c871', 'c872')",
        "UPDATE proxy_calls SET created_at = '2030-01-01' WHERE id = 'c873'",
        "UPDATE proxy_calls SET created_at = '2026-03-02T12:16:00Z' WHERE id = 'c1700'",
        "DELETE FROM proxy_calls WHERE id IN ('c874', 'c875', 'c876')",
        "INSERT INTO proxy_calls SELECT * FROM proxy_calls WHERE id = 'c877' ON CONFLICT (id) DO UPDATE SET cost_cents = 3",
        "INSERT INTO proxy_calls SELECT * FROM proxy_calls WHERE id = 'c878' ON CONFLICT (id) DO NOTHING",
        "UPDATE proxy_calls SET status_code = 200",
    ] {
        conn.batch_execute(write).unwrap();
        assert_exact(&mut conn);
        let told = changes(&mut conn);
        assert_eq!(told > 0, !write.ends_with("NOTHING") && !write.ends_with("200"), "{write}");
        roll_up(&mut conn, "2026-03-03T00:00:00Z");
        assert_eq!(changes(&mut conn), 0, "{write}");
        assert_exact(&mut conn);
    }
}

#[test]
fn calls_after_the_frontier_write_no_change() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-02T00:00:00Z");
    conn.batch_execute(
        "UPDATE proxy_calls SET cost_cents = 1 WHERE created_at >= '2026-03-02'; DELETE FROM proxy_calls WHERE id = 'c1000'",
    )
    .unwrap();
    assert_eq!(changes(&mut conn), 0);
    assert_exact(&mut conn);
}

#[test]
fn counting_waits_for_a_writer_that_began_before_the_announcement() {
    let (database, mut conn) = migrated_apart();
    let mut writer = database.connect().unwrap();
    writer.batch_execute("BEGIN").unwrap();
    call(&mut writer, "early", "2026-03-02T10:00:00Z", "1");

    for _ in 0..10 {
        let step = step(&mut conn, "2026-03-02T12:00:00Z");
        assert_eq!(step.counted_to, DateTime::<Utc>::MIN_UTC, "the writer may still commit");
    }
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z"), (0, "0".into()));
    writer.batch_execute("COMMIT").unwrap();
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z"), (1, "1".into()));
    roll_up(&mut conn, "2026-03-02T12:00:00Z");
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z"), (1, "1".into()));
}

#[test]
fn counting_does_not_wait_for_a_writer_that_began_after_the_announcement() {
    let (database, mut conn) = migrated_apart();
    let mut writer = database.connect().unwrap();
    // Now the frontier is announced and the barrier is taken.
    for _ in 0..2 {
        KeysDriver::new(&mut conn).roll_up_usage(at("2026-03-02T12:00:00Z"), 10).unwrap().unwrap();
    }
    writer.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
    call(&mut writer, "late", "2026-03-02T10:00:00Z", "1");
    roll_up(&mut conn, "2026-03-02T12:00:00Z");
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z"), (0, "0".into()));
    writer.batch_execute("COMMIT").unwrap();
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z"), (1, "1".into()));
    roll_up(&mut conn, "2026-03-02T12:00:00Z");
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z"), (1, "1".into()));
}

#[test]
fn a_transaction_does_not_count_up_to_its_own_announcement() {
    // On a server of its own: any other open transaction would hold the counting up.
    let server = throwaway_postgres::PrivateServer::start_new().unwrap();
    let database = server.create_database().and_then(|empty| empty.prepare(migrate)).unwrap();
    let mut conn = database.connect().unwrap();
    let mut writer = database.connect().unwrap();
    for isolation in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        conn.batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}; SELECT 1")).unwrap();
        // It begins after the snapshot, writes before the announcement, and commits at the end.
        writer.batch_execute("BEGIN").unwrap();
        call(&mut writer, isolation, "2026-03-02T10:00:00Z", "1");
        let until = at("2026-03-02T12:00:00Z") + TimeDelta::days(isolation.len().try_into().unwrap());
        for _ in 0..4 {
            KeysDriver::new(&mut conn).roll_up_usage(until, 10).unwrap().unwrap();
        }
        conn.batch_execute("COMMIT").unwrap();
        step(&mut conn, &until.to_rfc3339());
        writer.batch_execute("COMMIT").unwrap();
        roll_up(&mut conn, &until.to_rfc3339());
        let plain = plain(&mut conn, "api_key_id = 'key'", &(at("2026-03-01T00:00:00Z")..until));
        assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z").0, plain.request_count, "{isolation}");
    }
}

#[test]
fn a_call_that_is_counted_before_its_change_is_merged_counts_once() {
    // On a server of its own: the third step counts, because no other transaction is open.
    let server = throwaway_postgres::PrivateServer::start_new().unwrap();
    let database = server.create_database().and_then(|empty| empty.prepare(migrate)).unwrap();
    let mut conn = database.connect().unwrap();
    roll_up(&mut conn, "2026-03-02T12:00:00Z");
    // Now the frontier is announced and the barrier is taken.
    for _ in 0..2 {
        KeysDriver::new(&mut conn).roll_up_usage(at("2026-03-02T13:00:00Z"), 2).unwrap().unwrap();
    }
    for n in 0..5 {
        call(&mut conn, &format!("older {n}"), "2026-03-02T11:00:00Z", "1");
    }
    call(&mut conn, "newer", "2026-03-02T12:30:00Z", "1");
    assert_eq!(changes(&mut conn), 6);
    let step = KeysDriver::new(&mut conn).roll_up_usage(at("2026-03-02T13:00:00Z"), 2).unwrap().unwrap();
    assert_eq!((step.calls_counted, changes(&mut conn)), (1, 3), "{step:?}");
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z"), (6, "6".into()));
    roll_up(&mut conn, "2026-03-02T13:00:00Z");
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z"), (6, "6".into()));
}

#[test]
fn a_concurrent_step_returns_none_and_changes_nothing() {
    let (database, mut conn) = migrated_apart();
    let mut other = database.connect().unwrap();
    conn.batch_execute("BEGIN").unwrap();
    KeysDriver::new(&mut conn).roll_up_usage(at("2026-03-02T12:00:00Z"), 10).unwrap().unwrap();
    let mut keys = KeysDriver::new(&mut other);
    assert_eq!(keys.roll_up_usage(at("2026-03-02T12:00:00Z"), 10).unwrap(), None);
    assert_eq!(keys.recount_usage(at("2026-03-02T12:00:00Z")).unwrap(), None);
    conn.batch_execute("COMMIT").unwrap();
    assert!(keys.roll_up_usage(at("2026-03-02T12:00:00Z"), 10).unwrap().is_some());
}

#[test]
fn a_cost_that_is_not_a_number_is_an_error_that_names_the_key() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    conn.batch_execute(
        "ALTER TABLE proxy_calls DROP CONSTRAINT IF EXISTS proxy_calls_cost_cents_is_a_number",
    )
    .unwrap();
    let nan = "UPDATE proxy_calls SET cost_cents = 'NaN' WHERE id = 'c862'";
    let (before, after) = (at("2026-03-02T00:00:00Z"), at("2026-03-02T11:57:00Z"));
    let refusals = |conn: &mut PgConnection, told: &str| {
        let mut keys = KeysDriver::new(conn);
        let (tenant_id, key_id) = (tenant(), key("key"));
        let failed = keys.fetch_key_usage(&tenant_id, &key_id, before);
        assert!(
            matches!(&failed, Err(Error::CostNotANumber { key_id: Some(id), .. }) if *id == key_id),
            "{told}: {failed:?}"
        );
        let failed = keys.fetch_keys_with_usage(&tenant_id, before, Page::default());
        assert!(matches!(failed, Err(Error::CostNotANumber { key_id: Some(_), .. })), "{told}: {failed:?}");
        let failed = keys.fetch_key_usage_series(&tenant_id, &key_id, before..after, Bucket::Hour);
        assert!(matches!(failed, Err(Error::CostNotANumber { key_id: Some(_), .. })), "{told}: {failed:?}");
        let failed = keys.fetch_tenant_usage(&tenant_id, before);
        assert!(matches!(failed, Err(Error::CostNotANumber { key_id: None, .. })), "{told}: {failed:?}");
        let failed = keys.fetch_tenant_usage_by_key(&tenant_id, before..after, 1);
        assert!(matches!(failed, Err(Error::CostNotANumber { key_id: Some(_), .. })), "{told}: {failed:?}");
        // Within its quarter hour, but after it.
        assert!(keys.fetch_key_usage(&tenant_id, &key_id, after).is_ok(), "{told}");
        assert!(keys.fetch_key_usage(&tenant_id, &key("other"), before).is_ok(), "{told}");
    };
    conn.batch_execute(nan).unwrap();
    refusals(&mut conn, "not counted");
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    refusals(&mut conn, "counted");
    conn.batch_execute("UPDATE proxy_calls SET cost_cents = 1 WHERE id = 'c862'").unwrap();
    assert_exact(&mut conn);
    conn.batch_execute(nan).unwrap();
    refusals(&mut conn, "told");
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    refusals(&mut conn, "merged");
    conn.batch_execute("DELETE FROM proxy_calls WHERE id = 'c862'").unwrap();
    assert_exact(&mut conn);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    assert_exact(&mut conn);
}

#[test]
fn calls_of_any_time_that_the_server_can_hold_are_counted_or_read() {
    let (_database, mut conn) = migrated_apart();
    let times = [
        "-infinity",
        "4714-11-24 BC",
        "0001-01-01 BC",
        "1969-12-31 23:59:59.999999Z",
        "1970-01-01Z",
        "2026-03-02Z",
        "9999-12-31 12:00Z",
        "294276-12-31 23:59:59.999999Z",
        "infinity",
    ];
    let insert = |conn: &mut PgConnection, id: &str, time: &str| {
        conn.batch_execute(&format!(
            "INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)
             VALUES ('{id}{time}', '{TENANT}', 'key', '', '', '', '', 1, '{time}')"
        ))
        .unwrap();
    };
    let counts = |conn: &mut PgConnection| {
        let moments = [
            DateTime::<Utc>::MIN_UTC,
            at("-4713-11-24T00:00:00Z"),
            at("1969-12-31T23:59:59.999999Z"),
            at("1970-01-01T00:00:00Z"),
            at("1970-01-01T00:00:00.000001Z"),
            DateTime::<Utc>::MAX_UTC,
        ];
        let mut keys = KeysDriver::new(conn);
        let since =
            moments.map(|since| keys.fetch_key_usage(&tenant(), &key("key"), since).unwrap().request_count);
        let between = keys.fetch_key_usage_between(&tenant(), &key("key"), &moments).unwrap();
        let of_tenant = keys.fetch_tenant_usage(&tenant(), moments[0]).unwrap().request_count;
        (since, between.iter().map(|sum| sum.request_count).collect::<Vec<_>>(), of_tenant)
    };
    for time in times {
        insert(&mut conn, "first ", time);
    }
    let expected = ([9, 8, 6, 5, 4, 1], vec![1, 2, 1, 1, 3], 9);
    assert_eq!(counts(&mut conn), expected);
    for until in [
        DateTime::<Utc>::MIN_UTC,
        at("1960-01-01T00:00:00Z"),
        at("2026-03-02T12:00:00Z"),
        DateTime::<Utc>::MAX_UTC,
    ] {
        for limit in [0, 1, 1, 1, 1, 1, 1, 1, u32::MAX] {
            KeysDriver::new(&mut conn).roll_up_usage(until, limit).unwrap().unwrap();
            assert_eq!(counts(&mut conn), expected, "{until}");
        }
    }
    for time in times {
        insert(&mut conn, "second ", time);
    }
    let twice = (expected.0.map(|count| count * 2), expected.1.iter().map(|count| count * 2).collect(), 18);
    assert_eq!(counts(&mut conn), twice);
    KeysDriver::new(&mut conn).roll_up_usage(DateTime::<Utc>::MAX_UTC, 100).unwrap().unwrap();
    assert_eq!(counts(&mut conn), twice);
    let mut from = DateTime::<Utc>::MIN_UTC;
    for _ in 0..20 {
        let step = KeysDriver::new(&mut conn).recount_usage(from).unwrap().unwrap();
        from = step.recounted_to;
        assert_eq!(counts(&mut conn), twice, "{step:?}");
        if !step.is_behind {
            return;
        }
    }
    panic!("recounting does not end");
}

#[test]
fn a_sequence_that_was_never_set_or_was_set_back_loses_nothing_from_then_on() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    // As in a copy of the schema whose rows were replicated.
    conn.batch_execute("ALTER SEQUENCE usage_frontier RESTART; SELECT setval('usage_frontier', -1, false)")
        .unwrap();
    call(&mut conn, "late 1", "2026-03-02T12:16:00Z", "1");
    call(&mut conn, "new 1", "2026-03-04T12:16:00Z", "1");
    assert_exact(&mut conn);
    roll_up(&mut conn, "2026-03-05T00:00:00Z");
    assert_exact(&mut conn);
    conn.batch_execute("SELECT setval('usage_frontier', 1)").unwrap();
    roll_up(&mut conn, "2026-03-05T00:00:00Z");
    call(&mut conn, "late 2", "2026-03-02T12:17:00Z", "1");
    assert_exact(&mut conn);
}

#[test]
fn a_restore_into_a_server_with_lower_transaction_ids_loses_nothing() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    let ids_of_a_busier_server = |conn: &mut PgConnection, ahead: i64| {
        conn.batch_execute(&format!(
            "UPDATE usage_progress SET merged_below = x.id, barrier = x.id, announced_in = x.id
             FROM (SELECT pg_current_xact_id()::text::bigint + {ahead} AS id) AS x;
             UPDATE usage_changes SET transaction_id = transaction_id + {ahead}"
        ))
        .unwrap();
    };
    for ahead in [1_000_000_000_000, 6] {
        ids_of_a_busier_server(&mut conn, ahead);
        call(&mut conn, &format!("late {ahead}"), "2026-03-02T12:16:00Z", "1");
        assert_exact(&mut conn);
        // The ids overtake those of the other server before anybody rolls up.
        for _ in 0..8 {
            conn.batch_execute("SELECT pg_current_xact_id()").unwrap();
        }
        assert_exact(&mut conn);
        call(&mut conn, &format!("later {ahead}"), "2026-03-02T12:16:30Z", "1");
        roll_up(&mut conn, "2026-03-03T00:00:00Z");
        assert_exact(&mut conn);
        let left = changes(&mut conn);
        assert_eq!(left, 0, "{ahead}");
    }
}

#[test]
fn descending_boundaries_are_refused_and_fewer_than_two_have_no_sums() {
    let (_database, mut conn) = migrated();
    let mut keys = KeysDriver::new(&mut conn);
    let (one, two) = (at("2026-03-02T12:00:00Z"), at("2026-03-02T13:00:00Z"));
    let mut fetch =
        |boundaries: &[DateTime<Utc>]| keys.fetch_key_usage_between(&tenant(), &key("key"), boundaries);
    assert_eq!(fetch(&[]).unwrap(), []);
    assert_eq!(fetch(&[one]).unwrap(), []);
    assert_eq!(fetch(&[one, one]).unwrap(), [KeyUsageSnapshot::default()]);
    assert!(matches!(fetch(&[one, two, one]), Err(Error::BoundariesNotAscending)));
    let many: Vec<_> = (0..=10_001).map(|n| one + TimeDelta::minutes(n)).collect();
    assert!(matches!(fetch(&many), Err(Error::TooManyBuckets(10_001))));
    assert_eq!(fetch(&many[1..]).unwrap().len(), 10_000);
}
