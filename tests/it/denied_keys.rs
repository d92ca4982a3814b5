//! The cache of keys that may not be used equals the table after any writes, and is notified in time.

mod compaction;
mod listener;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use api_keys_driver::schema::{api_key_events, api_keys};
use api_keys_driver::{DeniedKeys, Error, EventPosition, KeyId, KeysDriver, TenantId, migrate};
use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use throwaway_postgres::{Pair, Replication};

use crate::support::{
    KeyRow, OTHER, TENANT, eventually, key, migrated_apart, other, tenant, wait_for_open_transactions,
};

const KEYS: usize = 12;

fn ids() -> Vec<(TenantId, KeyId)> {
    (0..KEYS).map(|n| (TenantId::from([TENANT, OTHER][n % 2]), KeyId::from(format!("key {n}")))).collect()
}

/// The keys of [`ids`] that exist in the table, and those that may not be used.
fn stored(conn: &mut PgConnection) -> (BTreeSet<String>, BTreeSet<String>) {
    let rows: Vec<(String, String, bool)> =
        api_keys::table.select((api_keys::id, api_keys::status, api_keys::is_frozen)).load(conn).unwrap();
    let all = rows.iter().map(|(id, ..)| id.clone()).collect();
    let denied = rows.into_iter().filter(|(_, status, frozen)| *frozen || status != "active");
    (all, denied.map(|(id, ..)| id).collect())
}

/// Catches up until no transaction is open, and compares: an existing key is denied if the table says so.
fn assert_equal(cache: &mut DeniedKeys, conn: &mut PgConnection) {
    let horizon = api_key_events::table.count().get_result::<i64>(conn).unwrap();
    eventually("the cache equals the table", || {
        cache.catch_up(conn).unwrap();
        let (all, denied) = stored(conn);
        let known = ids().into_iter().filter(|(tenant_id, key_id)| cache.contains(tenant_id, key_id));
        let known: BTreeSet<_> =
            known.map(|(_, id)| String::from(id)).filter(|id| all.contains(id)).collect();
        known == denied
    });
    assert_eq!(api_key_events::table.count().get_result::<i64>(conn), Ok(horizon), "somebody still writes");
}

/// One statement on one of the keys, as another program might send it.
fn statement(what: u8, n: usize) -> String {
    let (tenant_id, id) = ids().remove(n % KEYS);
    let of = format!("WHERE id = '{id}'");
    match what % 10 {
        0 | 1 => format!("UPDATE api_keys SET is_frozen = true {of}"),
        2 => format!("UPDATE api_keys SET is_frozen = false {of}"),
        3 => format!("UPDATE api_keys SET status = 'revoked', total_requests = total_requests + 1 {of}"),
        4 => format!("UPDATE api_keys SET status = 'active' {of}"),
        5 => format!("DELETE FROM api_keys {of}"),
        6 | 7 => format!(
            "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, created_at, is_frozen)
             VALUES ('{id}', '{tenant_id}', 'Key', 'sk', '{id}', now(), {}) ON CONFLICT DO NOTHING",
            n % 3 == 0
        ),
        8 => format!("UPDATE api_keys SET last_used_at = clock_timestamp() {of}"),
        _ => format!("UPDATE api_keys SET name = 'n' || total_requests, is_frozen = NOT is_frozen {of}"),
    }
}

#[test]
fn the_cache_equals_the_table_whenever_it_was_started() {
    let (database, mut conn) = migrated_apart();
    let mut writer = database.connect().unwrap();
    let runs = prop::collection::vec((any::<u8>(), any::<usize>(), any::<bool>()), 0..60);
    let (conn, writer) = (std::cell::RefCell::new(&mut conn), std::cell::RefCell::new(&mut writer));
    TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() })
        .run(&(runs, 0..60_usize), |(statements, start)| {
            let (mut conn, mut writer) = (conn.borrow_mut(), writer.borrow_mut());
            let mut cache = None;
            for (index, (what, n, compacts)) in statements.iter().enumerate() {
                if index == start {
                    cache = Some(DeniedKeys::seed(&mut conn).unwrap());
                }
                writer.batch_execute(&statement(*what, *n)).unwrap();
                if *compacts && index % 5 == 0 {
                    let passed = cache.as_mut().map(|cache: &mut DeniedKeys| {
                        cache.catch_up(&mut conn).unwrap();
                        cache.followed_to()
                    });
                    compact(&mut conn, passed);
                }
            }
            assert_equal(&mut cache.unwrap_or_else(|| DeniedKeys::seed(&mut conn).unwrap()), &mut conn);
            Ok(())
        })
        .unwrap();
}

/// Compacts as many events as possible, in small batches.
fn compact(conn: &mut PgConnection, passed: Option<EventPosition>) -> i64 {
    let passed = passed.unwrap_or_else(|| KeysDriver::new(conn).fetch_key_events_head().unwrap());
    let (mut deleted, mut after) = (0, None);
    loop {
        let done = KeysDriver::new(conn)
            .compact_key_events(after.as_ref(), &passed, DateTime::<Utc>::MAX_UTC, 7)
            .unwrap();
        deleted += done.deleted;
        if done.next.is_none() {
            return deleted;
        }
        assert!(done.next > after, "no way forward");
        after = done.next;
    }
}

#[test]
fn caches_equal_the_table_among_concurrent_writers_and_a_compactor() {
    const WRITERS: usize = 6;
    const ROUNDS: usize = 120;
    let (database, mut conn) = migrated_apart();
    let writing = AtomicBool::new(true);
    let mut caches = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mut conn = database.connect().unwrap();
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let seed = (writer * ROUNDS + round).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 7;
                        let sql = statement(u8::try_from(seed % 251).unwrap(), seed / 251);
                        // Transactions that began early change a key late; a third of them is rolled back.
                        let end = if seed % 3 == 0 { "ROLLBACK" } else { "COMMIT" };
                        conn.batch_execute("BEGIN; SELECT pg_current_xact_id()").unwrap();
                        thread::yield_now();
                        conn.batch_execute(&format!("{sql}; {end}")).unwrap();
                    }
                })
            })
            .collect();
        let followers: Vec<_> = (0..3)
            .map(|_| {
                let (mut conn, writing) = (database.connect().unwrap(), &writing);
                scope.spawn(move || {
                    let mut caches = Vec::new();
                    while writing.load(Ordering::Relaxed) {
                        // Starts caches repeatedly, and keeps some of them to compare at the end.
                        let mut cache = DeniedKeys::seed(&mut conn).unwrap();
                        for _ in 0..20 {
                            cache.catch_up(&mut conn).unwrap();
                        }
                        caches.push(cache);
                        caches.truncate(4);
                        for cache in &mut caches {
                            cache.catch_up(&mut conn).unwrap();
                        }
                    }
                    caches
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        writing.store(false, Ordering::Relaxed);
        followers.into_iter().flat_map(|follower| follower.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(!caches.is_empty());
    for cache in &mut caches {
        assert_equal(cache, &mut conn);
    }
    let before = api_key_events::table.count().get_result::<i64>(&mut conn).unwrap();
    wait_for_open_transactions(&mut conn);
    assert!(compact(&mut conn, None) > 0);
    let (all, _) = stored(&mut conn);
    let after = api_key_events::table.count().get_result::<i64>(&mut conn).unwrap();
    assert_eq!(after, i64::try_from(all.len()).unwrap(), "of {before}, the newest of each key stays");
    caches.push(DeniedKeys::seed(&mut conn).unwrap());
    for cache in &mut caches {
        assert_equal(cache, &mut conn);
    }
}

#[test]
fn a_key_that_is_inserted_again_after_compaction_has_a_higher_revision() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute("UPDATE api_keys SET name = 'x'; UPDATE api_keys SET is_frozen = true").unwrap();
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    assert!(cache.contains(&tenant(), &key("key")));

    conn.batch_execute("DELETE FROM api_keys").unwrap();
    wait_for_open_transactions(&mut conn);
    cache.catch_up(&mut conn).unwrap();
    assert!(cache.contains(&tenant(), &key("key")), "a deleted key may not be used");
    assert_eq!(compact(&mut conn, Some(cache.followed_to())), 4);

    KeyRow::default().insert(&mut conn);
    wait_for_open_transactions(&mut conn);
    cache.catch_up(&mut conn).unwrap();
    assert!(!cache.contains(&tenant(), &key("key")));
    let revision: i64 = api_keys::table.select(api_keys::revision).get_result(&mut conn).unwrap();
    assert_eq!(revision, 5, "above what the compacted events had");
    conn.batch_execute("UPDATE api_keys SET is_frozen = true").unwrap();
    wait_for_open_transactions(&mut conn);
    cache.catch_up(&mut conn).unwrap();
    assert!(cache.contains(&tenant(), &key("key")));
}

#[test]
fn keys_frozen_before_the_migration_are_denied_and_moved_ones_too() {
    let (_database, mut conn) = migrated_apart();
    conn.batch_execute("ALTER TABLE api_keys DISABLE TRIGGER USER").unwrap();
    KeyRow { id: "ice", is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "", tenant_id: "", status: "on hold", ..KeyRow::default() }.insert(&mut conn);
    conn.batch_execute("ALTER TABLE api_keys ENABLE TRIGGER USER").unwrap();
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    assert!(cache.contains(&tenant(), &key("ice")));
    assert!(cache.contains(&"".into(), &"".into()));
    assert_eq!(cache.len(), 2);

    conn.batch_execute(&format!("UPDATE api_keys SET tenant_id = '{OTHER}' WHERE id = 'ice'")).unwrap();
    wait_for_open_transactions(&mut conn);
    cache.catch_up(&mut conn).unwrap();
    assert!(cache.contains(&other(), &key("ice")));
}

#[test]
fn keys_that_may_be_used_are_removed_when_no_older_event_can_follow() {
    let (database, mut conn) = migrated_apart();
    let mut open = database.connect().unwrap();
    KeyRow::default().insert(&mut conn);
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    conn.batch_execute("UPDATE api_keys SET name = 'x'").unwrap();
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").unwrap();
    cache.catch_up(&mut conn).unwrap();
    assert!(format!("{cache:?}").contains("key"), "another transaction that began by then may come yet");
    open.batch_execute("COMMIT").unwrap();
    eventually("forgotten", || {
        cache.catch_up(&mut conn).unwrap();
        !format!("{cache:?}").contains("\"key\"")
    });
    assert!(cache.is_empty());
}

#[test]
fn missing_triggers_stop_followers_and_new_ones_restart_the_cache() {
    let (_database, mut conn) = migrated_apart();
    let triggers: Vec<(String, String)> = diesel::dsl::sql::<(Text, Text)>(
        "SELECT tgname::text, pg_get_triggerdef(oid) FROM pg_trigger
         WHERE tgrelid = 'api_keys'::regclass AND NOT tgisinternal ORDER BY tgname",
    )
    .load(&mut conn)
    .unwrap();
    assert_eq!(triggers.len(), 6, "{triggers:?}");
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    let mut keys = 0;
    for (name, definition) in &triggers {
        let alter = |what: &str| format!("ALTER TABLE api_keys {what} TRIGGER \"{name}\"");
        let enable = alter("ENABLE");
        for (off, on) in [
            (alter("DISABLE"), &enable),
            (alter("ENABLE REPLICA"), &enable),
            (format!("DROP TRIGGER \"{name}\" ON api_keys"), definition),
        ] {
            let position = cache.followed_to();
            conn.batch_execute(&off).unwrap();
            keys += 1;
            KeyRow { id: &format!("key {keys}"), is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
            assert!(matches!(cache.catch_up(&mut conn), Err(Error::EventsNotRecorded)), "{off}");
            assert!(matches!(DeniedKeys::seed(&mut conn), Err(Error::EventsNotRecorded)), "{off}");
            conn.batch_execute(on).unwrap();

            let mut driver = KeysDriver::new(&mut conn);
            let followed = driver.fetch_key_events_after(Some(&position), 1);
            assert!(matches!(followed, Err(Error::PositionElsewhere)), "{off}: {followed:?}");
            let compacted = driver.compact_key_events(None, &position, Utc::now(), 100);
            assert!(matches!(compacted, Err(Error::PositionElsewhere)), "{off}: {compacted:?}");
            assert!(cache.catch_up(&mut conn).unwrap().is_reseeded, "{off}");
            assert_eq!(cache.len(), keys, "{off}");
        }
    }
}

/// PostgreSQL fires no trigger of a table for rows of a table that inherits from it. For each partition it fires a copy
/// of the trigger, which can be disabled separately.
#[test]
fn tables_that_inherit_from_the_keys_and_partitions_stop_followers() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    conn.batch_execute(&format!(
        "CREATE TABLE old_keys () INHERITS (api_keys);
         INSERT INTO old_keys (id, tenant_id, name, key_prefix, key_hash, is_frozen)
         VALUES ('old', '{}', '', '', 'old', true)",
        crate::support::TENANT
    ))
    .unwrap();
    assert!(matches!(cache.catch_up(&mut conn), Err(Error::EventsNotRecorded)));
    conn.batch_execute("ALTER TABLE old_keys NO INHERIT api_keys").unwrap();
    cache.catch_up(&mut conn).unwrap();

    let triggers: Vec<String> = diesel::dsl::sql::<Text>(
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'api_keys'::regclass AND NOT tgisinternal",
    )
    .load(&mut conn)
    .unwrap();
    conn.batch_execute(
        "ALTER TABLE api_keys RENAME TO plain;
         CREATE TABLE api_keys (LIKE plain INCLUDING DEFAULTS) PARTITION BY HASH (tenant_id);
         CREATE TABLE keys_0 PARTITION OF api_keys FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    )
    .unwrap();
    conn.batch_execute(&triggers.join(";")).unwrap();
    assert!(matches!(cache.catch_up(&mut conn), Err(Error::EventsNotRecorded)));
    assert!(matches!(DeniedKeys::seed(&mut conn), Err(Error::EventsNotRecorded)));
}

#[test]
fn positions_stay_valid_when_the_catalog_is_rewritten() {
    let (_database, mut conn) = migrated_apart();
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    conn.batch_execute("VACUUM (FREEZE) pg_trigger").unwrap();
    conn.batch_execute("VACUUM (FULL, FREEZE) pg_trigger").unwrap();
    assert!(!cache.catch_up(&mut conn).unwrap().is_reseeded);
}

#[test]
fn a_cache_is_read_again_after_a_trigger_was_disabled() {
    let (_database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    conn.batch_execute(
        "ALTER TABLE api_keys DISABLE TRIGGER \"~api_keys_compare\";
         UPDATE api_keys SET is_frozen = true;
         ALTER TABLE api_keys ENABLE TRIGGER \"~api_keys_compare\"",
    )
    .unwrap();
    assert!(cache.catch_up(&mut conn).unwrap().is_reseeded);
    assert!(cache.contains(&tenant(), &key("key")));

    conn.batch_execute("ALTER TABLE api_keys ENABLE ALWAYS TRIGGER \"~api_keys_compare\"").unwrap();
    assert!(cache.catch_up(&mut conn).unwrap().is_reseeded);
    conn.batch_execute("UPDATE api_keys SET is_frozen = false").unwrap();
    eventually("the change is followed", || {
        assert!(!cache.catch_up(&mut conn).unwrap().is_reseeded, "it fires, and stays as it is");
        cache.is_empty()
    });
}

#[test]
fn an_event_whose_ids_are_not_utf8_is_skipped_and_the_others_are_read() {
    let (database, mut conn) = migrated_apart();
    let name: String =
        diesel::dsl::select(diesel::dsl::sql::<diesel::sql_types::Text>("current_database()::text"))
            .get_result(&mut conn)
            .unwrap();
    conn.batch_execute(&format!(
        "CREATE DATABASE ascii_{name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
    ))
    .unwrap();
    let url = database.url().replace(&name, &format!("ascii_{name}"));
    let mut conn = PgConnection::establish(&url).unwrap();
    migrate(&mut conn).unwrap();
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    conn.batch_execute(&format!(
        "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, is_frozen, freeze_reason)
         SELECT id, '{TENANT}', 'Key', 'sk', id, true, E'caf\\351'
         FROM (VALUES ('a'), (E'\\351'), (E'\\352'), ('b')) AS ids (id);
         UPDATE api_keys SET freeze_reason = E'\\351' WHERE id IN ('a', 'b')"
    ))
    .unwrap();
    let mut position = None;
    let (mut read, mut stepped_over) = (Vec::new(), 0);
    eventually("all are followed", || {
        match KeysDriver::new(&mut conn).fetch_key_events_after(position.as_ref(), 100) {
            Ok(events) => {
                position = events.last().map(|event| event.position).or(position);
                read.extend(events.into_iter().map(|event| (String::from(event.key_id), event.reason)));
            }
            Err(Error::UnreadableEvent(unreadable)) => {
                (position, stepped_over) = (Some(unreadable), stepped_over + 1);
            }
            Err(error) => panic!("{error:?}"),
        }
        read.len() == 4 && stepped_over == 2
    });
    let reason = Some("\u{fffd}".to_owned());
    let expected = [("a", None), ("b", None), ("a", reason.clone()), ("b", reason)];
    assert_eq!(read, expected.map(|(id, reason)| (id.to_owned(), reason)));
    assert_eq!(cache.catch_up(&mut conn).unwrap().unreadable, 2);
    assert!(cache.contains(&tenant(), &key("a")) && cache.contains(&tenant(), &key("b")));
    // More than a page of such keys, before and after the others.
    conn.batch_execute(&format!(
        "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, is_frozen)
         SELECT concat('a', E'\\351', n), '{TENANT}', '', '', concat('n', n), true FROM generate_series(1, 1200) AS n
         UNION ALL SELECT 'z', concat('t', E'\\351'), '', '', 'z', true
         UNION ALL SELECT 'last', '{OTHER}', '', '', 'last', true"
    ))
    .unwrap();
    let mut seeded = DeniedKeys::seed(&mut conn).unwrap();
    eventually("all are followed", || {
        seeded.catch_up(&mut conn).unwrap();
        seeded.contains(&other(), &key("last"))
    });
    assert_eq!(seeded.len(), 3, "a, b and last");
    let page = KeysDriver::new(&mut conn).fetch_denied_keys_after(None, 10);
    assert!(matches!(page, Err(Error::InvalidText(_))), "{page:?}");
}

#[test]
fn after_an_asynchronous_failover_followers_fail_and_the_cache_restarts() {
    let mut pair = Pair::start_new(Replication::Asynchronous).unwrap();
    let mut conn = PgConnection::establish(&pair.url()).unwrap();
    migrate(&mut conn).unwrap();
    KeyRow { id: "kept", is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    pair.wait_for_standby().unwrap();
    let mut standby = PgConnection::establish(&pair.standby.url()).unwrap();
    let mut cache = DeniedKeys::seed(&mut standby).unwrap();
    assert!(cache.contains(&tenant(), &key("kept")), "a standby answers too");
    drop(standby);

    // A change that the standby never receives.
    pair.standby.stop().unwrap();
    KeyRow { id: "lost", is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    let mut position = cache.followed_to();
    eventually("the lost key is followed", || {
        assert!(!cache.catch_up(&mut conn).unwrap().is_reseeded, "the primary is the same place");
        position = cache.followed_to();
        cache.contains(&tenant(), &key("lost"))
    });
    pair.primary.kill().unwrap();
    pair.standby.start().unwrap();
    pair.promote().unwrap();

    let mut conn = PgConnection::establish(&pair.url()).unwrap();
    KeyRow { id: "new", is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    let refused = KeysDriver::new(&mut conn).fetch_key_events_after(Some(&position), 100);
    assert!(matches!(refused, Err(Error::PositionElsewhere)), "{refused:?}");
    assert!(cache.catch_up(&mut conn).unwrap().is_reseeded);
    assert!(!cache.contains(&tenant(), &key("lost")), "it never happened here");
    assert!(cache.contains(&tenant(), &key("kept")) && cache.contains(&tenant(), &key("new")));
}

#[test]
fn a_walk_over_denied_keys_returns_each_once_whatever_its_limit() {
    let (_database, mut conn) = migrated_apart();
    for (id, tenant_id) in [("a", TENANT), ("b", TENANT), ("c", OTHER), ("0", OTHER)] {
        KeyRow { id, tenant_id, is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    }
    KeyRow { id: "free", ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "revoked", status: "revoked", ..KeyRow::default() }.insert(&mut conn);
    for limit in 1..=6 {
        let (mut walked, mut last) = (vec![], None);
        loop {
            let page = KeysDriver::new(&mut conn).fetch_denied_keys_after(last.as_ref(), limit).unwrap();
            walked.extend(page.iter().map(|key| key.id.to_string()));
            last = page.into_iter().last();
            if last.is_none() {
                break;
            }
        }
        assert_eq!(walked, ["a", "b", "revoked", "0", "c"], "{limit} at a time");
    }
}

/// The dump of a database by `pg_dump`, as statements.
fn dump(database: &throwaway_postgres::Database, options: &[&str]) -> Option<String> {
    let program = throwaway_postgres::programs().unwrap().join("pg_dump");
    if !program.exists() {
        eprintln!("skipped: there is no pg_dump beside the server's programs");
        return None;
    }
    let dump = std::process::Command::new(program).args(options).arg(database.url()).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let sql = String::from_utf8(dump.stdout).unwrap();
    // Commands of psql.
    Some(sql.lines().filter(|line| !line.starts_with('\\')).map(|line| line.to_owned() + "\n").collect())
}

#[test]
fn a_restored_dump_refuses_positions_and_restored_data_add_one_event_per_key() {
    let (database, mut conn) = migrated_apart();
    KeyRow { id: "ice", is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "thawed", is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    conn.batch_execute("UPDATE api_keys SET is_frozen = false WHERE id = 'thawed'").unwrap();
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();

    let Some(whole) = dump(&database, &["--inserts"]) else { return };
    let (_copy, mut copy) = crate::support::empty_apart();
    copy.batch_execute(&whole).unwrap();
    copy.batch_execute("RESET search_path; SELECT pg_catalog.set_config('search_path', 'public', false)")
        .unwrap();
    let mut of_the_copy = cache.clone();
    assert!(of_the_copy.catch_up(&mut copy).unwrap().is_reseeded);
    assert_eq!(api_key_events::table.count().get_result::<i64>(&mut copy), Ok(3), "no trigger fired");

    let data =
        dump(&database, &["--inserts", "--data-only", "--table=api_keys", "--table=api_key_events"]).unwrap();
    let (_data, mut restored) = migrated_apart();
    restored.batch_execute(&data).unwrap();
    restored.batch_execute("SELECT pg_catalog.set_config('search_path', 'public', false)").unwrap();
    let told: Vec<(String, i64)> = api_key_events::table
        .filter(api_key_events::key_id.eq("thawed"))
        .order(api_key_events::revision)
        .select((api_key_events::kind, api_key_events::revision))
        .load(&mut restored)
        .unwrap();
    let twice = [("inserted", 1), ("unfrozen", 2), ("inserted", 3)];
    assert_eq!(told, twice.map(|(kind, revision)| (kind.to_owned(), revision)));
    assert!(cache.catch_up(&mut restored).unwrap().is_reseeded);
    for cache in [&cache, &of_the_copy] {
        assert!(cache.contains(&tenant(), &key("ice")) && !cache.contains(&tenant(), &key("thawed")));
    }
}
