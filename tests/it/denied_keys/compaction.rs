//! Removing old events.

use api_keys_driver::schema::api_key_events;
use api_keys_driver::{Error, EventPosition, KeysDriver};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use super::compact;
use crate::support::{KeyRow, OTHER, TENANT, migrated_apart, wait_for_open_transactions};

#[test]
fn compaction_keeps_events_that_are_recent_or_not_passed() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute("UPDATE api_keys SET name = 'x'; UPDATE api_keys SET name = 'y'").unwrap();
    wait_for_open_transactions(&mut conn);
    let head = KeysDriver::new(&mut conn).fetch_key_events_head().unwrap();
    conn.batch_execute("UPDATE api_keys SET name = 'z'; UPDATE api_keys SET name = 'w'").unwrap();
    wait_for_open_transactions(&mut conn);
    let count = |conn: &mut PgConnection| api_key_events::table.count().get_result::<i64>(conn).unwrap();
    let mut keys = KeysDriver::new(&mut conn);
    let young = keys.compact_key_events(None, &head, Utc::now() - TimeDelta::hours(1), 100).unwrap();
    assert_eq!(young.deleted, 0);
    let one = keys.compact_key_events(None, &head, DateTime::<Utc>::MAX_UTC, 1).unwrap();
    assert_eq!(one.deleted, 1);
    let rest = keys.compact_key_events(one.next.as_ref(), &head, DateTime::<Utc>::MAX_UTC, 100).unwrap();
    // The fifth event is the newest, and the fourth is after the head.
    assert_eq!((rest.deleted, count(&mut conn)), (2, 2));
}

#[test]
fn compaction_with_a_position_of_another_server_deletes_nothing() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute("UPDATE api_keys SET name = 'x'; UPDATE api_keys SET name = 'y'").unwrap();
    wait_for_open_transactions(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    let here = keys.fetch_key_events_head().unwrap();
    let elsewhere = |place: &str| format!("0000000000000001{place}").parse::<EventPosition>().unwrap();
    let (start, end) = (elsewhere(".0.0"), elsewhere(&here.to_string()[16..]));
    for (after, passed) in [(Some(&start), &here), (None, &end), (Some(&start), &end)] {
        let refused = keys.compact_key_events(after, passed, DateTime::<Utc>::MAX_UTC, 100);
        assert!(matches!(refused, Err(Error::PositionElsewhere)), "{after:?} {passed:?}: {refused:?}");
    }
    assert_eq!(api_key_events::table.count().get_result::<i64>(keys.connection()), Ok(3), "events are gone");
}

/// What compaction leaves: tenant, key and revision of each event.
fn left(conn: &mut PgConnection) -> Vec<(String, String, i64)> {
    wait_for_open_transactions(conn);
    compact(conn, None);
    api_key_events::table
        .select((api_key_events::tenant_id, api_key_events::key_id, api_key_events::revision))
        .order((api_key_events::tenant_id, api_key_events::key_id))
        .load(conn)
        .unwrap()
}

#[test]
fn compaction_keeps_the_highest_revision_of_each_key_of_each_tenant() {
    let (_database, mut conn) = migrated_apart();
    // The same id in two tenants, as a sharded table allows, and a trigger that makes the later event the lower revision.
    conn.batch_execute(
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_pkey, ADD PRIMARY KEY (tenant_id, id);
         CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.name = 'go' THEN UPDATE api_keys SET name = 'gone' WHERE tenant_id = NEW.tenant_id AND id = NEW.id; END IF;
             RETURN NULL;
         END $$;
         CREATE TRIGGER again AFTER UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION again()",
    )
    .unwrap();
    KeyRow { key_hash: Some("1"), ..KeyRow::default() }.insert(&mut conn);
    KeyRow { key_hash: Some("2"), tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    conn.batch_execute(&format!(
        "UPDATE api_keys SET name = 'x' WHERE tenant_id = '{TENANT}'; UPDATE api_keys SET name = 'go' WHERE tenant_id = '{OTHER}';
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash) VALUES ('moved', '{TENANT}', '', '', '3');
         UPDATE api_keys SET tenant_id = '{OTHER}' WHERE id = 'moved'"
    ))
    .unwrap();
    let expected = [(TENANT, "key", 2), (OTHER, "key", 3), (OTHER, "moved", 2)];
    let expected = expected.map(|(tenant, key, revision)| (tenant.to_owned(), key.to_owned(), revision));
    assert_eq!(left(&mut conn), expected);
}

#[test]
fn compaction_looks_at_no_event_above_a_transaction_that_is_open() {
    let (database, mut conn) = migrated_apart();
    let mut open = database.connect().unwrap();
    let end = KeysDriver::new(&mut conn).fetch_key_events_head().unwrap().to_string();
    let end = format!("{}.{}.0", &end[..16], i64::MAX).parse::<EventPosition>().unwrap();
    open.batch_execute("BEGIN; CREATE TEMP TABLE anything ()").unwrap();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute("UPDATE api_keys SET name = 'x'").unwrap();
    let mut keys = KeysDriver::new(&mut conn);
    let done = keys.compact_key_events(None, &end, DateTime::<Utc>::MAX_UTC, 100).unwrap();
    assert_eq!((done.deleted, done.next), (0, None));
}
