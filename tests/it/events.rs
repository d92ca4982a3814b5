//! What is recorded of a change, and that a follower gets each event exactly once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use api_keys_driver::schema::{api_key_events, api_keys};
use api_keys_driver::{
    Error, EventPosition, Freeze, KeyEventCursor, KeyHash, KeyStatus, KeyUse, KeysDriver, Page, Result,
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::support::events::{history, kinds, named};
use crate::support::{
    KeyRow, OTHER, PATIENCE, assert_fields, at, key, migrated_apart, new_key, other, plans_of, tenant,
    unfreeze, with, with_locked,
};

/// Follows to the last event after a position, and returns the keys in the order of the events.
fn follow(conn: &mut PgConnection, position: &mut Option<EventPosition>) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let events = KeysDriver::new(conn).fetch_key_events_after(position.as_ref(), 7).unwrap();
        let Some(last) = events.last() else { return ids };
        assert!(Some(last.position) > *position, "no way forward");
        *position = Some(last.position);
        ids.extend(events.into_iter().map(|event| String::from(event.key_id)));
    }
}

/// Follows until there were `count` events.
fn follow_until(conn: &mut PgConnection, position: &mut Option<EventPosition>, count: usize) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut ids = Vec::new();
    while ids.len() < count {
        assert!(Instant::now() < deadline, "only {ids:?} came");
        ids.extend(follow(conn, position));
    }
    ids
}

#[test]
fn each_event_has_the_kind_actor_reason_time_and_resulting_state() {
    let (_database, mut conn) = migrated_apart();
    let (frozen_at, revoked_at) = (at("2026-06-01T12:00:00Z"), at("2026-06-02T12:00:00Z"));
    let expiry = Some(at("2026-06-03T12:00:00Z"));
    let freeze = Freeze { at: frozen_at, by: "ops", reason: Some("odd traffic") };
    KeysDriver::new(&mut conn).insert_key(&new_key("key")).unwrap();
    with_locked(&mut conn, |keys, key| keys.update_key_frozen_by(key, &freeze)).unwrap();
    with_locked(&mut conn, |keys, key| keys.update_key_expires_at(key, expiry)).unwrap();
    unfreeze(&mut conn);
    with_locked(&mut conn, |keys, key| keys.update_key_revoked(key, revoked_at, Some("leaked"))).unwrap();
    diesel::delete(api_keys::table).execute(&mut conn).unwrap();

    let events = history(&mut conn, "key");
    let expected = |index: usize, kind: &str, at| {
        with!(
            events[0].clone(),
            position: events[index].position,
            revision: i64::try_from(index).unwrap() + 1,
            kind: kind.into(),
            at: at,
            recorded_at: events[index].recorded_at,
        )
    };
    assert!(events.iter().all(|event| (Utc::now() - event.recorded_at).abs() < TimeDelta::minutes(10)));
    let given_no_time = |index: usize| {
        let server_says = events[index].at;
        assert!((Utc::now() - server_says).abs() < TimeDelta::minutes(10), "{server_says}");
        server_says
    };
    assert_fields!(
        events[0],
        tenant_id: tenant(),
        key_id: key("key"),
        actor: None,
        reason: None,
        status: KeyStatus::Active,
        is_frozen: false,
        expires_at: None,
    );
    let revoked = KeyStatus::Revoked;
    assert_eq!(
        events,
        [
            expected(0, "inserted", at("2026-01-01T00:00:00Z")),
            with!(
                expected(1, "frozen", frozen_at),
                actor: Some("ops".into()), reason: Some("odd traffic".into()), is_frozen: true,
            ),
            with!(expected(2, "expiry_set", given_no_time(2)), is_frozen: true, expires_at: expiry),
            with!(expected(3, "unfrozen", given_no_time(3)), expires_at: expiry),
            with!(
                expected(4, "revoked", revoked_at),
                reason: Some("leaked".into()), status: revoked.clone(), expires_at: expiry,
            ),
            with!(expected(5, "deleted", given_no_time(5)), status: revoked, expires_at: expiry),
        ]
    );
}

#[test]
fn an_update_that_changes_nothing_or_is_rolled_back_has_no_event() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    let now = at("2026-06-01T12:00:00Z");
    unfreeze(&mut conn);
    with_locked(&mut conn, |keys, key| keys.update_key_expires_at(key, None)).unwrap();
    let failed: Result<()> = with_locked(&mut conn, |keys, key| {
        keys.update_key_frozen(key, now)?;
        Err(diesel::result::Error::RollbackTransaction.into())
    });
    assert!(failed.is_err());
    conn.batch_execute(
        "INSERT INTO api_keys SELECT * FROM api_keys ON CONFLICT DO NOTHING;
         UPDATE api_keys SET name = name, status = status, is_frozen = is_frozen",
    )
    .unwrap();
    assert_eq!(kinds(&mut conn, "key"), named(&[(1, "inserted")]));
    assert_eq!(
        KeysDriver::new(&mut conn).fetch_key_by_hash(&KeyHash::from("key")).unwrap().unwrap().revision,
        1
    );
}

#[test]
fn one_update_of_several_kinds_has_an_event_for_each_kind() {
    let (_database, mut conn) = migrated_apart();
    KeyRow { is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    conn.batch_execute(
        "UPDATE api_keys SET is_frozen = false, status = 'revoked', expires_at = now(), name = 'Old'",
    )
    .unwrap();
    assert_eq!(
        kinds(&mut conn, "key"),
        named(&[(1, "inserted"), (2, "unfrozen"), (2, "revoked"), (2, "expiry_set"), (2, "changed")])
    );
    let states: BTreeSet<_> = history(&mut conn, "key")
        .into_iter()
        .skip(1)
        .map(|event| (event.status, event.is_frozen, event.expires_at))
        .collect();
    assert_eq!(states.len(), 1);
}

#[derive(QueryableByName)]
struct Column {
    #[diesel(sql_type = diesel::sql_types::Text)]
    column_name: String,
    #[diesel(sql_type = diesel::sql_types::Text)]
    data_type: String,
}

#[test]
fn changes_of_every_column_except_those_of_a_use_are_recorded() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    let columns: Vec<Column> = diesel::sql_query(
        "SELECT column_name::text, data_type::text FROM information_schema.columns
         WHERE table_name = 'api_keys' AND column_name <> 'revision' ORDER BY ordinal_position",
    )
    .load(&mut conn)
    .unwrap();
    assert_eq!(columns.len(), 23);
    let mut unwatched = Vec::new();
    for Column { column_name, data_type } in columns {
        let value = match data_type.as_str() {
            "boolean" => "true",
            "integer" | "bigint" => "77",
            "timestamp with time zone" => "'2027-01-01Z'",
            _ => "'other'",
        };
        let count = |conn: &mut PgConnection| api_key_events::table.count().get_result::<i64>(conn).unwrap();
        let before = count(&mut conn);
        conn.batch_execute(&format!("UPDATE api_keys SET {column_name} = {value}")).unwrap();
        if count(&mut conn) == before {
            unwatched.push(column_name);
        }
    }
    assert_eq!(unwatched, ["last_used_at", "total_requests"]);
}

#[test]
fn a_history_is_paged_and_belongs_to_one_key_of_one_tenant() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    KeyRow { id: "another", ..KeyRow::default() }.insert(&mut conn);
    conn.batch_execute("UPDATE api_keys SET name = 'x'; UPDATE api_keys SET name = 'y'").unwrap();
    let mut keys = KeysDriver::new(&mut conn);
    let page = keys.fetch_key_events(&tenant(), &key("key"), Page { limit: 1, offset: 1 }).unwrap();
    assert_eq!((page.len(), page[0].revision, &page[0].key_id), (1, 2, &key("key")));
    assert_eq!(keys.fetch_key_events(&tenant(), &key("key"), Page::default()).unwrap().len(), 3);
    assert!(keys.fetch_key_events(&other(), &key("key"), Page::default()).unwrap().is_empty());
}

#[test]
fn a_history_is_paged_with_a_cursor_that_is_stored_as_text() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    // An update that has two events with the same revision.
    conn.batch_execute("UPDATE api_keys SET name = 'x', is_frozen = true; UPDATE api_keys SET name = 'y'")
        .unwrap();
    let whole = history(&mut conn, "key");
    assert_eq!(whole.iter().map(|event| event.revision).collect::<Vec<_>>(), [1, 2, 2, 3]);
    let (mut walked, mut text) = (vec![], None::<String>);
    loop {
        let cursor = text.as_deref().map(|text| text.parse::<KeyEventCursor>().unwrap());
        let mut driver = KeysDriver::new(&mut conn);
        let page = driver.fetch_key_history_after(&tenant(), &key("key"), cursor.as_ref(), 1).unwrap();
        let Some(last) = page.last() else { break };
        text = Some(KeyEventCursor::from(last).to_string());
        walked.extend(page);
    }
    assert_eq!(walked, whole);
}

#[test]
fn no_event_contains_a_hash() {
    let (_database, mut conn) = migrated_apart();
    KeyRow { key_hash: Some("5ec2e7"), ..KeyRow::default() }.insert(&mut conn);
    conn.batch_execute("UPDATE api_keys SET key_hash = '5ec2e7-b'").unwrap();
    let found = diesel::sql_query("SELECT FROM api_key_events AS e WHERE e::text LIKE '%5ec2e7%'");
    assert_eq!(found.execute(&mut conn).unwrap(), 0);
    assert_eq!(history(&mut conn, "key").len(), 2);
}

#[test]
fn an_event_with_an_early_id_that_is_committed_late_is_not_skipped() {
    let (database, mut early) = migrated_apart();
    let (mut late, mut follower) = (database.connect().unwrap(), database.connect().unwrap());
    let mut position = None;

    early.batch_execute("BEGIN").unwrap();
    KeyRow { id: "early id", ..KeyRow::default() }.insert(&mut early);
    KeyRow { id: "late id", ..KeyRow::default() }.insert(&mut late);
    assert!(follow(&mut follower, &mut position).is_empty(), "an event passed one that may come before it");

    early.batch_execute("COMMIT").unwrap();
    assert_eq!(follow_until(&mut follower, &mut position, 2), ["early id", "late id"]);
    assert!(follow(&mut follower, &mut position).is_empty());
}

#[test]
fn followers_wait_for_open_transactions_and_ignore_failed_ones() {
    let (database, mut conn) = migrated_apart();
    let (mut open, mut follower) = (database.connect().unwrap(), database.connect().unwrap());
    let mut position = None;
    KeyRow { id: "before", ..KeyRow::default() }.insert(&mut conn);

    // A transaction has an id as soon as it has written anything, also without an event.
    open.batch_execute("BEGIN; CREATE TEMP TABLE anything ()").unwrap();
    for id in ["b", "c"] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    assert_eq!(follow_until(&mut follower, &mut position, 1), ["before"]);
    KeyRow { id: "a", ..KeyRow::default() }.insert(&mut open);
    assert!(follow(&mut follower, &mut position).is_empty());

    open.batch_execute("ROLLBACK").unwrap();
    assert_eq!(follow_until(&mut follower, &mut position, 2), ["b", "c"]);
}

#[test]
fn followers_do_not_wait_for_transactions_that_only_read() {
    let (database, mut conn) = migrated_apart();
    let mut reader = database.connect().unwrap();
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM api_keys").unwrap();
    KeyRow::default().insert(&mut conn);
    assert_eq!(follow_until(&mut conn, &mut None, 1), ["key"]);
    reader.batch_execute("COMMIT").unwrap();
}

#[test]
fn events_of_interleaved_transactions_are_in_the_order_of_their_start() {
    let (database, mut first) = migrated_apart();
    let (mut second, mut follower) = (database.connect().unwrap(), database.connect().unwrap());
    let mut position = None;
    KeyRow::default().insert(&mut first);
    follow_until(&mut follower, &mut position, 1);

    // The first transaction begins first and changes the key last.
    first.batch_execute("BEGIN; SELECT pg_current_xact_id()").unwrap();
    second.batch_execute("BEGIN; UPDATE api_keys SET is_frozen = true; COMMIT").unwrap();
    first.batch_execute("UPDATE api_keys SET is_frozen = false; COMMIT").unwrap();

    let mut events = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while events.len() < 2 && Instant::now() < deadline {
        events = KeysDriver::new(&mut follower).fetch_key_events_after(position.as_ref(), 10).unwrap();
    }
    let revisions: Vec<_> = events.iter().map(|event| (event.kind.as_str(), event.revision)).collect();
    assert_eq!(revisions, [("unfrozen", 3), ("frozen", 2)]);
}

#[test]
fn events_of_a_nested_transaction_are_ordered_by_the_outer_one() {
    let (database, mut conn) = migrated_apart();
    let mut follower = database.connect().unwrap();
    conn.transaction(|conn| {
        KeyRow { id: "outer", ..KeyRow::default() }.insert(conn);
        conn.transaction(|conn| {
            KeyRow { id: "nested", ..KeyRow::default() }.insert(conn);
            diesel::QueryResult::Ok(())
        })?;
        assert!(follow(&mut follower, &mut None).is_empty());
        diesel::QueryResult::Ok(())
    })
    .unwrap();
    assert_eq!(follow_until(&mut follower, &mut None, 2), ["outer", "nested"]);
}

#[test]
fn a_limit_and_a_position_are_exact() {
    let (_database, mut conn) = migrated_apart();
    conn.transaction(|conn| {
        for id in ["a", "b", "c"] {
            KeyRow { id, ..KeyRow::default() }.insert(conn);
        }
        KeyRow { id: "d", tenant_id: OTHER, ..KeyRow::default() }.insert(conn);
        diesel::QueryResult::Ok(())
    })
    .unwrap();
    let mut position = None;
    assert_eq!(follow_until(&mut conn, &mut position, 4), ["a", "b", "c", "d"]);

    let mut keys = KeysDriver::new(&mut conn);
    let two = keys.fetch_key_events_after(None, 2).unwrap();
    assert_eq!(two.len(), 2);
    let rest = keys.fetch_key_events_after(Some(&two[1].position), u32::MAX).unwrap();
    assert_eq!(rest.iter().map(|event| event.key_id.as_str()).collect::<Vec<_>>(), ["c", "d"]);
    assert!(keys.fetch_key_events_after(None, 0).unwrap().is_empty());
}

#[test]
fn a_position_is_stored_as_text_and_other_texts_are_refused() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    let mut position = None;
    follow_until(&mut conn, &mut position, 1);
    let position = position.unwrap();
    assert_eq!(position.to_string().parse::<EventPosition>().unwrap(), position);
    for text in [
        "",
        "1",
        ".",
        "1.2",
        "1.2.3",
        "0000000000000000.1",
        "0000000000000000.1.",
        "0000000000000000.1.2.3",
        "0000000000000000.01.2",
        "000000000000000G.1.2",
        "000000000000000A.1.2",
        "0000000000000000.99999999999999999999.1",
    ] {
        assert!(matches!(text.parse::<EventPosition>(), Err(Error::EventPosition)), "{text:?}");
    }
}

#[test]
fn after_a_restore_on_a_server_with_lower_ids_followers_start_over() {
    let (_database, mut conn) = migrated_apart();
    KeyRow { id: "a", ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "b", ..KeyRow::default() }.insert(&mut conn);
    conn.batch_execute("UPDATE api_key_events SET transaction_id = transaction_id + 1000000000").unwrap();
    assert!(follow(&mut conn, &mut None).is_empty(), "ids of another server");

    conn.batch_execute("UPDATE api_key_events SET transaction_id = 0").unwrap();
    KeyRow { id: "c", ..KeyRow::default() }.insert(&mut conn);
    assert_eq!(follow_until(&mut conn, &mut None, 3), ["a", "b", "c"]);
}

/// The keys of a simple cache as the documentation describes it, with their revisions.
#[derive(Default)]
struct FrozenKeys {
    followed_to: Option<EventPosition>,
    seen: HashMap<String, (i64, bool)>,
    times: BTreeMap<EventPosition, u32>,
}

impl FrozenKeys {
    fn catch_up(&mut self, conn: &mut PgConnection) {
        loop {
            let events = KeysDriver::new(conn).fetch_key_events_after(self.followed_to.as_ref(), 20).unwrap();
            let Some(last) = events.last() else { return };
            assert!(Some(last.position) > self.followed_to, "no way forward");
            self.followed_to = Some(last.position);
            for event in events {
                *self.times.entry(event.position).or_default() += 1;
                let news = (event.revision, event.is_frozen);
                let seen = self.seen.entry(event.key_id.into()).or_insert(news);
                if event.revision > seen.0 {
                    *seen = news;
                }
            }
        }
    }
}

#[test]
fn a_follower_gets_each_event_of_concurrent_writers_once() {
    const WRITERS: usize = 8;
    const ROUNDS: usize = 40;
    const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
    let (database, mut conn) = migrated_apart();
    for id in KEYS {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    let (mut cache, writing) = (FrozenKeys::default(), AtomicBool::new(true));
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut conn = database.connect().unwrap();
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        write(&mut conn, KEYS[(writer + round) % KEYS.len()], writer, round);
                    }
                })
            })
            .collect();
        let follower = scope.spawn(|| {
            let mut conn = database.connect().unwrap();
            while writing.load(Ordering::Relaxed) {
                cache.catch_up(&mut conn);
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        writing.store(false, Ordering::Relaxed);
        follower.join().unwrap();
    });

    let positions = (api_key_events::transaction_id, api_key_events::id);
    let committed: Vec<(i64, i64)> =
        api_key_events::table.select(positions).order(positions).load(&mut conn).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while cache.times.len() < committed.len() && Instant::now() < deadline {
        cache.catch_up(&mut conn);
    }
    let followed: Vec<_> = cache
        .times
        .keys()
        .map(|position| position.to_string().split_once('.').unwrap().1.to_owned())
        .collect();
    let committed: Vec<_> = committed.iter().map(|(transaction, id)| format!("{transaction}.{id}")).collect();
    assert!(committed.len() > WRITERS * ROUNDS / 2, "{}", committed.len());
    assert_eq!(followed, committed);
    assert!(cache.times.values().all(|times| *times == 1));

    let columns = (api_keys::id, (api_keys::revision, api_keys::is_frozen));
    let stored: HashMap<String, (i64, bool)> =
        api_keys::table.select(columns).load(&mut conn).unwrap().into_iter().collect();
    assert_eq!(cache.seen, stored);
}

/// Freezes or unfreezes a key in a transaction that began before it locked the key.
fn write(conn: &mut PgConnection, id: &str, writer: usize, round: usize) {
    let now: DateTime<Utc> = at("2026-06-01T12:00:00Z");
    let done: Result<()> = conn.transaction(|conn| {
        diesel::sql_query("SELECT pg_current_xact_id()").execute(conn)?;
        thread::yield_now();
        let mut keys = KeysDriver::new(conn);
        let locked = keys.fetch_key_for_update(&tenant(), &key(id))?.expect("a key");
        if round % 2 == 0 {
            let by = writer.to_string();
            let at = now + TimeDelta::seconds(i64::try_from(round).unwrap());
            keys.update_key_frozen_by(locked, &Freeze { at, by: &by, reason: None })?;
        } else {
            keys.update_key_unfrozen(locked)?;
        }
        keys.record_key_uses(&[KeyUse { tenant_id: tenant(), key_id: key(id), count: 1, at: now }])?;
        if round % 7 == 3 { Err(diesel::result::Error::RollbackTransaction.into()) } else { Ok(()) }
    });
    assert_eq!(done.is_ok(), round % 7 != 3, "{done:?}");
}

#[test]
fn events_are_read_in_the_order_of_their_indexes() {
    plans_of("fetch_key_events")
        .planned_for_each_call()
        .read(&["Index Scan using ix_api_key_events_history"]);
    let range = "Index Cond: ((ROW(transaction_id, id) > ROW(";
    plans_of("fetch_key_history_after")
        .planned_for_each_call()
        .read(&["Index Scan using ix_api_key_events_history"]);
    plans_of("fetch_denied_keys_after").planned_for_each_call().read(&["ix_api_keys_denied on api_keys"]);
    plans_of("fetch_key_events_after")
        .planned_for_each_call()
        // PostgreSQL 16 and newer sort before they aggregate.
        .or_read(&["on pg_trigger", "on pg_class", "on pg_inherits", "Sort Key: pg_trigger.tgname"])
        .read_in_vain()
        .read(&["Index Scan using api_key_events_pkey", range]);
}
