//! Usage after a switch-over to a logical replica, with two servers and the SQL of `docs/usage.md`.

use api_keys_driver::{KeyUsageSnapshot, KeysDriver, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;

use crate::support::usage::{assert_exact, call, changes, fill, roll_up};
use crate::support::{at, eventually, server_with, tenant};

/// One block of SQL under a heading of the document, counted from 0.
pub(crate) fn documented(heading: &str, nth: usize) -> &'static str {
    let (_, section) = include_str!("../../docs/usage.md").split_once(heading).expect(heading);
    section.split("```sql\n").nth(nth + 1).unwrap().split("```").next().unwrap()
}

/// All rows that usage is read from.
fn rows(conn: &mut PgConnection) -> Vec<String> {
    diesel::dsl::sql::<Text>(
        "SELECT c::text FROM proxy_calls AS c UNION ALL SELECT u::text FROM usage_changes AS u
         UNION ALL SELECT k::text FROM usage_key_buckets AS k UNION ALL SELECT t::text FROM usage_tenant_buckets AS t
         UNION ALL SELECT p::text FROM usage_progress AS p UNION ALL SELECT r::text FROM usage_retention AS r ORDER BY 1",
    )
    .load(conn)
    .unwrap()
}

fn spend_ids(conn: &mut PgConnection) {
    conn.batch_execute(
        "DO $$ BEGIN FOR n IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
    )
    .unwrap();
}

/// The usage of the tenant since the earliest time, also of deleted calls.
fn of_all_time(conn: &mut PgConnection) -> KeyUsageSnapshot {
    KeysDriver::new(conn).fetch_tenant_usage(&tenant(), at("2000-01-01T00:00:00Z")).unwrap()
}

/// `is_younger`: whether the ids of the subscriber are lower than those of the publisher.
fn take_over(is_younger: bool) {
    let mut publishing = server_with("ALTER SYSTEM SET wal_level = logical");
    let subscribing = server_with("ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'");
    let source = publishing.create_database().unwrap().prepare(migrate).unwrap();
    let copy = subscribing.create_database().unwrap().prepare(migrate).unwrap();
    let (mut publisher, mut subscriber) = (source.connect().unwrap(), copy.connect().unwrap());
    spend_ids(if is_younger { &mut publisher } else { &mut subscriber });

    fill(&mut publisher);
    roll_up(&mut publisher, "2026-03-02T06:00:00Z");
    assert!(
        KeysDriver::new(&mut publisher).delete_calls_before(at("2026-03-01T12:15:00Z"), 100).unwrap() > 0
    );
    publisher.batch_execute("CREATE PUBLICATION keys FOR TABLE api_keys").unwrap();
    subscriber
        .batch_execute(&format!("CREATE SUBSCRIPTION keys CONNECTION '{}' PUBLICATION keys", source.url()))
        .unwrap();
    subscriber.batch_execute(documented("## Logical replication\n", 0)).unwrap();
    publisher.batch_execute(documented("## Logical replication\n", 1)).unwrap();
    subscriber.batch_execute("ALTER SUBSCRIPTION keys REFRESH PUBLICATION").unwrap();

    call(&mut publisher, "late", "2026-03-02T05:00:00Z", "1");
    roll_up(&mut publisher, "2026-03-02T12:20:00Z");
    // This step announces a frontier, and does not count yet.
    KeysDriver::new(&mut publisher).roll_up_usage(at("2026-03-02T18:00:00Z"), 100).unwrap().unwrap();
    publisher
        .batch_execute("UPDATE proxy_calls SET cost_cents = 7 WHERE id = 'late'; DELETE FROM proxy_calls WHERE id = 'c800'")
        .unwrap();
    let waiting = changes(&mut publisher);
    assert!(waiting > 0);
    let (expected, before) = (rows(&mut publisher), of_all_time(&mut publisher));
    eventually("all is applied", || rows(&mut subscriber) == expected);
    assert_exact(&mut subscriber);
    assert_eq!(of_all_time(&mut subscriber), before);

    publishing.kill().unwrap();
    subscriber
        .batch_execute(
            "ALTER SUBSCRIPTION keys DISABLE; ALTER SUBSCRIPTION keys SET (slot_name = NONE);
             DROP SUBSCRIPTION keys",
        )
        .unwrap();
    // The conditions that the SQL is for.
    subscriber.batch_execute("BEGIN").unwrap();
    call(&mut subscriber, "missing", "2026-03-02T12:16:00Z", "1");
    assert_eq!(
        of_all_time(&mut subscriber),
        before,
        "the sequence is replicated: the document is out of date"
    );
    subscriber.batch_execute("ROLLBACK").unwrap();

    subscriber.batch_execute(documented("## Logical replication\n", 2)).unwrap();
    call(&mut subscriber, "counted", "2026-03-02T12:16:00Z", "1");
    assert_eq!(changes(&mut subscriber), waiting + 1);
    let newest = "SELECT FROM usage_changes WHERE created_at = '2026-03-02T12:16:00Z'
         AND id = (SELECT max(id) FROM usage_changes)";
    assert_eq!(diesel::sql_query(newest).execute(&mut subscriber), Ok(1), "the ids start from the beginning");
    assert_eq!(of_all_time(&mut subscriber).request_count, before.request_count + 1);
    assert_exact(&mut subscriber);
    roll_up(&mut subscriber, "2026-03-03T18:00:00Z");
    assert_eq!(changes(&mut subscriber), 0);
    assert_exact(&mut subscriber);
    assert_eq!(of_all_time(&mut subscriber).request_count, before.request_count + 1);
}

#[test]
fn after_a_switch_over_the_usage_of_deleted_calls_is_kept() {
    take_over(true);
    take_over(false);
}
