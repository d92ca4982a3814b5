//! Usage when calls are deleted, truncated, or written without the triggers.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use api_keys_driver::{KeyId, KeyUsageSnapshot, KeysDriver, Migrator, migrate};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::support::usage::{assert_exact, call, changes, fill, plain, roll_up, usage};
use crate::support::{CallRow, TENANT, at, key, migrated_apart, tenant};

#[test]
fn drift_is_found_and_counted_again() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-02T18:07:00Z");
    conn.batch_execute(
        "ALTER TABLE proxy_calls DISABLE TRIGGER USER;
         DELETE FROM proxy_calls WHERE id IN ('c10', 'c873', 'c874');
         UPDATE proxy_calls SET cost_cents = 9 WHERE id = 'c880';
         UPDATE proxy_calls SET created_at = '2020-05-05 05:05Z' WHERE id = 'c881';
         ALTER TABLE proxy_calls ENABLE TRIGGER USER",
    )
    .unwrap();
    // In the same quarter hour as a call that is to be repaired, and recorded by the trigger.
    call(&mut conn, "late", "2026-03-02T12:16:00Z", "1");
    let all = DateTime::<Utc>::MIN_UTC..DateTime::<Utc>::MAX_UTC;
    let drift = KeysDriver::new(&mut conn).fetch_usage_drift(all.clone(), 100).unwrap();
    assert!(
        drift
            .iter()
            .any(|drift| drift.key_id == Some(key("key")) && drift.counted_calls == 0 && drift.calls == 1)
    );
    assert!(
        drift.iter().any(|drift| drift.key_id.is_none() && drift.counted_calls > drift.calls),
        "{drift:#?}"
    );
    assert_eq!(KeysDriver::new(&mut conn).fetch_usage_drift(all.clone(), 2).unwrap(), drift[..2]);
    let (mut from, mut changed) = (DateTime::<Utc>::MIN_UTC, 0);
    loop {
        let step = KeysDriver::new(&mut conn).recount_usage(from).unwrap().unwrap();
        assert!(step.recounted_to > from, "{step:?}");
        (from, changed) = (step.recounted_to, changed + step.sums_changed);
        if !step.is_behind {
            break;
        }
    }
    assert_eq!(changed, 4);
    assert_eq!(KeysDriver::new(&mut conn).fetch_usage_drift(all, 100).unwrap(), []);
    assert_exact(&mut conn);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    assert_exact(&mut conn);
}

#[test]
fn deleting_calls_by_retention_keeps_their_usage() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    let whole = |conn: &mut PgConnection, since: &str| {
        let mut keys = KeysDriver::new(conn);
        let of_key = keys.fetch_key_usage(&tenant(), &key("key"), at(since)).unwrap();
        let of_tenant = keys.fetch_tenant_usage(&tenant(), at(since)).unwrap();
        let by_key =
            keys.fetch_tenant_usage_by_key(&tenant(), at(since)..at("2099-01-01T00:00:00Z"), 9).unwrap();
        (of_key, of_tenant, by_key)
    };
    let before = whole(&mut conn, "2026-03-01T00:00:00Z");
    let quarter = whole(&mut conn, "2026-03-02T12:00:00Z");
    // Nothing is counted, so nothing may go.
    assert_eq!(KeysDriver::new(&mut conn).delete_calls_before(at("2026-03-02T12:20:00Z"), 100).unwrap(), 0);
    roll_up(&mut conn, "2026-03-02T18:07:00Z");
    let mut deleted = 0;
    loop {
        let batch = KeysDriver::new(&mut conn).delete_calls_before(at("2026-03-02T12:20:00Z"), 100).unwrap();
        assert!(batch <= 100);
        deleted += batch;
        assert_eq!(whole(&mut conn, "2026-03-01T00:00:00Z"), before);
        if batch == 0 {
            break;
        }
        if deleted == 500 {
            roll_up(&mut conn, "2026-03-02T18:07:00Z");
        }
    }
    assert_eq!(deleted, 873, "those before 12:15");
    assert_eq!(whole(&mut conn, "2026-03-02T12:00:00Z"), quarter);
    roll_up(&mut conn, "2026-03-02T18:07:00Z");
    assert_eq!(whole(&mut conn, "2026-03-01T00:00:00Z"), before);

    let rounded = KeysDriver::new(&mut conn)
        .fetch_key_usage(&tenant(), &key("key"), at("2026-03-02T12:14:00Z"))
        .unwrap();
    assert!(rounded.is_rounded);
    assert_eq!(
        (rounded.request_count, &rounded.spend_cents),
        (quarter.0.request_count, &quarter.0.spend_cents)
    );
    let boundaries =
        ["2026-03-02T11:50:00Z", "2026-03-02T12:01:00Z", "2026-03-02T12:15:00Z", "2026-03-02T12:16:00Z"]
            .map(at);
    let sums =
        KeysDriver::new(&mut conn).fetch_key_usage_between(&tenant(), &key("key"), &boundaries).unwrap();
    assert_eq!(sums.iter().map(|sum| sum.is_rounded).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(sums[2], plain(&mut conn, "api_key_id = 'key'", &(boundaries[2]..boundaries[3])));

    // The service's own DELETE, of a call that was inserted late, lowers the usage.
    call(&mut conn, "late", "2026-03-02T10:00:00Z", "5");
    assert_eq!(whole(&mut conn, "2026-03-01T00:00:00Z").0.request_count, before.0.request_count + 1);
    conn.batch_execute("DELETE FROM proxy_calls WHERE id = 'late'").unwrap();
    assert_eq!(whole(&mut conn, "2026-03-01T00:00:00Z"), before);
    // What is gone is not counted again.
    let step = KeysDriver::new(&mut conn).recount_usage(at("2026-01-01T00:00:00Z")).unwrap().unwrap();
    assert!(!step.is_behind, "{step:?}");
    assert_eq!(whole(&mut conn, "2026-03-01T00:00:00Z"), before);
}

#[test]
fn a_revert_keeps_the_usage_of_deleted_calls() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    // All calls of this key are on the day of the last deleted call, and later.
    CallRow {
        id: "evening",
        api_key_id: Some("evening"),
        created_at: at("2026-03-02T17:00:00Z"),
        ..CallRow::default()
    }
    .insert(&mut conn);
    roll_up(&mut conn, "2026-03-02T18:07:00Z");
    let before = all_usage(&mut conn);
    assert!(KeysDriver::new(&mut conn).delete_calls_before(at("2026-03-02T12:20:00Z"), 1_000).unwrap() > 0);
    roll_up(&mut conn, "2026-03-02T18:07:00Z");
    assert_eq!(all_usage(&mut conn), before);

    Migrator::new().revert(&mut conn).unwrap();
    call(&mut conn, "between", "2026-03-02T16:00:00Z", "1");
    // A worker that goes on counts what no trigger corrects.
    roll_up(&mut conn, "2026-03-02T20:00:00Z");
    conn.batch_execute("DELETE FROM proxy_calls WHERE id = 'evening'").unwrap();
    migrate(&mut conn).unwrap();
    let after = all_usage(&mut conn);
    assert_eq!(after.0.request_count, before.0.request_count);
    assert_eq!(after.1.len(), before.1.len() - 1, "{after:#?}");
    assert_eq!(after.1[0].1.request_count, before.1[0].1.request_count + 1);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    assert_eq!(all_usage(&mut conn), after);
    let all = DateTime::<Utc>::MIN_UTC..DateTime::<Utc>::MAX_UTC;
    assert_eq!(KeysDriver::new(&mut conn).fetch_usage_drift(all, 5).unwrap(), []);
}

#[test]
fn calls_are_counted_again_after_a_trigger_was_missing() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-02T18:07:00Z");
    conn.batch_execute(
        "DROP TRIGGER proxy_calls_tell_usage ON proxy_calls;
         DELETE FROM proxy_calls WHERE id IN ('c10', 'c873', 'c874')",
    )
    .unwrap();
    let all = DateTime::<Utc>::MIN_UTC..DateTime::<Utc>::MAX_UTC;
    assert!(!KeysDriver::new(&mut conn).fetch_usage_drift(all, 5).unwrap().is_empty());
    assert_eq!(migrate(&mut conn).unwrap(), ["0000-api-keys-driver-302_proxy_calls_tell_usage"]);
    assert_exact(&mut conn);
    conn.batch_execute("DELETE FROM proxy_calls WHERE id IN ('c11', 'c875', 'c876')").unwrap();
    assert_exact(&mut conn);
    roll_up(&mut conn, "2026-03-02T18:07:00Z");
    assert_exact(&mut conn);
    assert!(migrate(&mut conn).unwrap().is_empty());
}

#[test]
fn calls_are_counted_again_while_others_write_and_count() {
    let (database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-02T12:20:00Z");
    assert!(KeysDriver::new(&mut conn).delete_calls_before(at("2026-03-01T15:20:00Z"), 1_000).unwrap() > 0);
    roll_up(&mut conn, "2026-03-02T12:20:00Z");
    let since = at("2026-03-02T00:00:00Z");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = SetOnDrop(&is_over);
        for writer in 0..3 {
            let (database, is_over) = (&database, &is_over);
            scope.spawn(move || {
                let mut conn = database.connect().unwrap();
                for n in (0..).take_while(|_| !is_over.load(Relaxed)) {
                    let minute = n * 37 % 1_440;
                    conn.batch_execute(&format!(
                        "BEGIN;
                         INSERT INTO proxy_calls SELECT * FROM jsonb_populate_record(
                             (SELECT c FROM proxy_calls AS c WHERE id = 'c1720'),
                             jsonb_build_object('id', 'w{writer}-{n}', 'created_at', timestamptz '2026-03-02Z' + interval '{minute} minutes'));
                         UPDATE proxy_calls SET cost_cents = {n} WHERE id = 'w{writer}-{}';
                         DELETE FROM proxy_calls WHERE id = 'w{writer}-{}';
                         COMMIT",
                        n - 5, n - 9
                    ))
                    .unwrap();
                }
            });
        }
        scope.spawn(|| {
            let mut conn = database.connect().unwrap();
            for minute in (0..).take_while(|_| !is_over.load(Relaxed)) {
                let until = since + TimeDelta::minutes(minute % 1_440);
                KeysDriver::new(&mut conn).roll_up_usage(until, 200).unwrap();
            }
        });
        for _ in 0..15 {
            conn.batch_execute("DROP TRIGGER proxy_calls_tell_usage ON proxy_calls").unwrap();
            assert_eq!(migrate(&mut conn).unwrap().len(), 1);
            for _ in 0..20 {
                conn.build_transaction()
                    .repeatable_read()
                    .run(|conn| {
                        let expected = plain(conn, "true", &(since..at("2099-01-01T00:00:00Z")));
                        assert_eq!(
                            KeysDriver::new(conn).fetch_tenant_usage(&tenant(), since).unwrap(),
                            expected
                        );
                        diesel::QueryResult::Ok(())
                    })
                    .unwrap();
            }
        }
    });
    roll_up(&mut conn, "2026-03-03T18:07:00Z");
    let all = DateTime::<Utc>::MIN_UTC..DateTime::<Utc>::MAX_UTC;
    assert_eq!(KeysDriver::new(&mut conn).fetch_usage_drift(all, 5).unwrap(), []);
}

/// Sets the flag also if the test fails, so that the other threads end.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn a_step_in_the_future_can_be_set_back() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2099-01-01T00:00:00Z");
    call(&mut conn, "recorded", "2026-03-02T18:00:00Z", "1");
    assert_eq!(changes(&mut conn), 1);
    conn.batch_execute("DROP TRIGGER proxy_calls_tell_usage ON proxy_calls").unwrap();
    migrate(&mut conn).unwrap();
    assert_exact(&mut conn);
    roll_up(&mut conn, "2026-03-02T18:07:00Z");
    assert_exact(&mut conn);
    call(&mut conn, "new", "2026-03-02T18:07:00Z", "1");
    assert_eq!(changes(&mut conn), 0);
    assert_exact(&mut conn);
    call(&mut conn, "late", "2026-03-02T18:06:59Z", "1");
    assert_eq!(changes(&mut conn), 1);
    assert_exact(&mut conn);
}

/// The usage of the tenant and of its keys, from the sums of days.
fn all_usage(conn: &mut PgConnection) -> (KeyUsageSnapshot, Vec<(KeyId, KeyUsageSnapshot)>) {
    let (since, until) = (at("2000-01-01T00:00:00Z"), at("2099-01-01T00:00:00Z"));
    let mut keys = KeysDriver::new(conn);
    let of_tenant = keys.fetch_tenant_usage(&tenant(), since).unwrap();
    (of_tenant, keys.fetch_tenant_usage_by_key(&tenant(), since..until, 9).unwrap())
}

#[test]
fn wrong_sums_of_days_are_found_and_counted_again() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-02T18:07:00Z");
    let range = at("2026-03-01T14:00:00Z")..at("2026-03-02T15:00:00Z");
    assert_eq!(KeysDriver::new(&mut conn).fetch_usage_drift(range.clone(), 9).unwrap(), []);
    conn.batch_execute(&format!(
        "UPDATE usage_key_buckets SET calls = calls + 1 WHERE is_day AND tenant_id = '{TENANT}' AND api_key_id = 'key' AND start = '2026-03-01Z';
         DELETE FROM usage_tenant_buckets WHERE is_day AND tenant_id = '{TENANT}' AND start = '2026-03-02Z';
         INSERT INTO usage_key_buckets VALUES ('{TENANT}', 'no calls', true, '2026-03-02Z', 0, 0, 1)"
    ))
    .unwrap();
    let drift = KeysDriver::new(&mut conn).fetch_usage_drift(range.clone(), 9).unwrap();
    let found: Vec<_> = drift
        .iter()
        .map(|drift| {
            (drift.key_id.as_ref().map(KeyId::as_str), drift.start, drift.counted_calls - drift.calls)
        })
        .collect();
    let days = ["2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"].map(at);
    assert_eq!(found.len(), 3, "{drift:#?}");
    assert_eq!(found[0], (Some("key"), days[0], 1));
    assert_eq!(found[1], (Some("no calls"), days[1], 0));
    assert!(found[2].0.is_none() && found[2].1 == days[1] && found[2].2 < 0, "{drift:#?}");
    assert!(drift.iter().all(|drift| drift.is_day));

    let mut from = range.start;
    while let Some(step) =
        KeysDriver::new(&mut conn).recount_usage(from).unwrap().filter(|step| step.is_behind)
    {
        from = step.recounted_to;
    }
    assert_eq!(KeysDriver::new(&mut conn).fetch_usage_drift(range, 9).unwrap(), []);
    assert_exact(&mut conn);
}

/// A take-over by logical replication leaves the sequence behind, and the trigger records no deletion above it.
#[test]
fn calls_after_the_frontier_are_not_deleted() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    let never = at("2000-01-01T00:00:00Z");
    let before = KeysDriver::new(&mut conn).fetch_tenant_usage(&tenant(), never).unwrap();
    let moment = at("2026-03-02T00:00:00Z");
    for set_back in
        ["SELECT setval('usage_frontier', -210866803200)", "SELECT setval('usage_frontier', 1772388000)"]
    {
        conn.batch_execute(set_back).unwrap();
        let deleted = KeysDriver::new(&mut conn).delete_calls_before(moment, 1_000).unwrap();
        assert_eq!(deleted > 0, set_back.contains("1772388000"), "{set_back}");
        assert_eq!(KeysDriver::new(&mut conn).fetch_tenant_usage(&tenant(), never).unwrap(), before);
    }
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    assert!(KeysDriver::new(&mut conn).delete_calls_before(moment, 1_000).unwrap() > 0);
    assert_eq!(KeysDriver::new(&mut conn).fetch_tenant_usage(&tenant(), never).unwrap(), before);
    roll_up(&mut conn, "2026-03-04T00:00:00Z");
    assert_eq!(KeysDriver::new(&mut conn).fetch_tenant_usage(&tenant(), never).unwrap(), before);
}

#[test]
fn truncating_the_calls_deletes_all_usage() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-02T18:07:00Z");
    KeysDriver::new(&mut conn).delete_calls_before(at("2026-03-02T12:20:00Z"), 100).unwrap();
    conn.batch_execute("BEGIN; TRUNCATE proxy_calls; ROLLBACK").unwrap();
    assert!(usage(&mut conn, "2026-03-01T00:00:00Z").0 > 0);
    conn.batch_execute("TRUNCATE proxy_calls").unwrap();
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z"), (0, "0".into()));
    call(&mut conn, "late", "2026-03-02T12:20:00Z", "1");
    call(&mut conn, "new", "2026-03-02T19:00:00Z", "1");
    assert_exact(&mut conn);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    assert_exact(&mut conn);
}
