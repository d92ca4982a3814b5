//! Events after a switch-over to a logical replica, with forced row-level security, and after a person's data are
//! erased.

use std::fs;

use api_keys_driver::schema::{api_key_events, api_keys};
use api_keys_driver::{DeniedKeys, KeyEventSnapshot, KeysDriver, MIGRATIONS, Migrator, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_migrations::MigrationHarness;
use throwaway_postgres::{Database, PrivateServer};

use crate::events_migrations::migrate_to_before_events;
use crate::support::events::history;
use crate::support::{
    KeyRow, OTHER, TENANT, empty_apart, eventually, key, migrated_apart, other, server_with, tenant,
    wait_for_open_transactions,
};

/// One block of SQL under a heading of the document, counted from 0.
fn documented(heading: &str, index: usize) -> &'static str {
    let (_, section) = include_str!("../../docs/events.md").split_once(heading).expect(heading);
    section.split("```sql\n").nth(index + 1).unwrap().split("```").next().unwrap()
}

fn lines(conn: &mut PgConnection, sql: &str) -> Vec<String> {
    diesel::dsl::sql::<Text>(sql).load(conn).unwrap()
}

/// The keys, the events, and the revision that compaction keeps of deleted keys.
fn copied(conn: &mut PgConnection) -> Vec<String> {
    lines(
        conn,
        "SELECT api_keys::text FROM api_keys UNION ALL SELECT e::text FROM api_key_events AS e
         UNION ALL SELECT c::text FROM api_key_events_compacted AS c ORDER BY 1",
    )
}

fn denied_in_table(conn: &mut PgConnection) -> Vec<String> {
    lines(conn, "SELECT id::text FROM api_keys WHERE is_frozen OR status <> 'active' ORDER BY 1")
}

fn assert_equal(cache: &DeniedKeys, conn: &mut PgConnection) {
    let denied = denied_in_table(conn);
    assert_eq!(cache.len(), denied.len(), "{denied:?}");
    assert!(denied.iter().all(|id| cache.contains(&tenant(), &key(id))), "{denied:?}");
}

/// A server with these settings, and a database on it as it was before this crate recorded events.
fn before_events(settings: &str) -> (PrivateServer, Database, PgConnection) {
    let server = server_with(settings);
    let database = server.create_database().unwrap();
    let mut conn = database.connect().unwrap();
    migrate_to_before_events(&mut conn);
    (server, database, conn)
}

#[test]
fn a_subscriber_stops_until_it_is_migrated_and_can_be_switched_to() {
    let (mut publishing, source, mut publisher) = before_events("ALTER SYSTEM SET wal_level = logical");
    let (subscribing, _copy, mut subscriber) =
        before_events("ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'");
    // The publisher's transaction ids are far above the subscriber's.
    publisher
        .batch_execute(
            "DO $$ BEGIN FOR i IN 1..5000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
        )
        .unwrap();
    KeyRow { id: "first", is_frozen: true, ..KeyRow::default() }.insert(&mut publisher);
    publisher.batch_execute("CREATE PUBLICATION keys FOR TABLE api_keys").unwrap();
    subscriber
        .batch_execute(&format!("CREATE SUBSCRIPTION keys CONNECTION '{}' PUBLICATION keys", source.url()))
        .unwrap();
    let count = |conn: &mut PgConnection| api_keys::table.count().get_result::<i64>(conn).unwrap();
    eventually("the first key is copied", || count(&mut subscriber) == 1);

    migrate(&mut publisher).unwrap();
    KeyRow { id: "second", ..KeyRow::default() }.insert(&mut publisher);
    let log = subscribing.socket_folder().join("log");
    eventually("the subscriber stops", || {
        let log = fs::read_to_string(&log).unwrap();
        log.lines().any(|line| line.contains("missing replicated column") && line.contains("revision"))
    });
    assert_eq!(count(&mut subscriber), 1);
    migrate(&mut subscriber).unwrap();
    eventually("the second key is applied", || count(&mut subscriber) == 2);
    publisher.batch_execute("UPDATE api_keys SET status = 'revoked' WHERE id = 'second'").unwrap();
    eventually("the revocation is applied", || denied_in_table(&mut subscriber) == ["first", "second"]);
    assert_eq!(api_key_events::table.count().get_result::<i64>(&mut subscriber), Ok(0), "a trigger fired");
    assert_eq!(lines(&mut subscriber, "SELECT max(revision)::text FROM api_keys"), ["2"]);

    KeyRow { id: "gone", ..KeyRow::default() }.insert(&mut publisher);
    publisher
        .batch_execute(
            "UPDATE api_keys SET name = 'x' WHERE id = 'gone'; DELETE FROM api_keys WHERE id = 'gone'",
        )
        .unwrap();
    wait_for_open_transactions(&mut publisher);
    let mut driver = KeysDriver::new(&mut publisher);
    let head = driver.fetch_key_events_head().unwrap();
    assert_eq!(
        driver
            .compact_key_events(None, &head, chrono::DateTime::<chrono::Utc>::MAX_UTC, 100)
            .unwrap()
            .deleted,
        4
    );
    subscriber.batch_execute(documented("### Logical replication\n", 0)).unwrap();
    publisher.batch_execute(documented("### Logical replication\n", 1)).unwrap();
    subscriber.batch_execute("ALTER SUBSCRIPTION keys REFRESH PUBLICATION").unwrap();
    let mut of_the_publisher = DeniedKeys::seed(&mut publisher).unwrap();
    let mut of_the_subscriber = DeniedKeys::seed(&mut subscriber).unwrap();
    publisher
        .batch_execute(
            "UPDATE api_keys SET is_frozen = false; UPDATE api_keys SET is_frozen = true WHERE id = 'second';
             UPDATE api_keys SET status = 'active'",
        )
        .unwrap();
    let expected = copied(&mut publisher);
    eventually("all is applied", || copied(&mut subscriber) == expected);
    assert_eq!(of_the_subscriber.catch_up(&mut subscriber).unwrap().events, 0, "the ids are the publisher's");
    eventually("the publisher's events are followed", || {
        of_the_publisher.catch_up(&mut publisher).unwrap();
        of_the_publisher.len() == 1
    });

    publishing.kill().unwrap();
    subscriber
        .batch_execute(
            "ALTER SUBSCRIPTION keys DISABLE; ALTER SUBSCRIPTION keys SET (slot_name = NONE);
             DROP SUBSCRIPTION keys",
        )
        .unwrap();
    // Twice, because the events of this server are then replicated to the next one, which is switched to.
    for again in [false, true] {
        subscriber.batch_execute(documented("### Events of another server\n", 0)).unwrap();
        let mut seeded = DeniedKeys::seed(&mut subscriber).unwrap();
        assert_equal(&seeded, &mut subscriber);
        let events = api_key_events::table.count().get_result::<i64>(&mut subscriber).unwrap();
        eventually("all events can be followed", || {
            i64::try_from(followed(&mut subscriber).len()) == Ok(events)
        });
        if !again {
            assert!(of_the_publisher.catch_up(&mut subscriber).unwrap().is_reseeded);
        }
        let frozen = denied_in_table(&mut subscriber);
        subscriber.batch_execute("UPDATE api_keys SET is_frozen = NOT is_frozen").unwrap();
        assert_ne!(denied_in_table(&mut subscriber), frozen);
        wait_for_open_transactions(&mut subscriber);
        for cache in [&mut seeded, &mut of_the_publisher] {
            assert!(!cache.catch_up(&mut subscriber).unwrap().is_reseeded);
            assert_equal(cache, &mut subscriber);
        }
    }
    let history = history(&mut subscriber, "second");
    let revisions: Vec<_> = history.iter().map(|event| event.revision).collect();
    assert_eq!(revisions, [2, 3, 4, 5, 6], "the newest is kept, and the others go on");
    KeyRow { id: "gone", ..KeyRow::default() }.insert(&mut subscriber);
    assert_eq!(lines(&mut subscriber, "SELECT revision::text FROM api_keys WHERE id = 'gone'"), ["4"]);
}

#[test]
fn policies_that_hide_keys_or_events_from_the_migrator_are_an_error() {
    const TABLES: [&str; 2] = ["api_keys", "api_key_events"];
    let (database, mut conn) = empty_apart();
    let name = lines(&mut conn, "SELECT current_database()::text").remove(0);
    let role = format!("migrator_of_{name}");
    conn.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role};
         GRANT CREATE ON DATABASE {name} TO {role}"
    ))
    .unwrap();
    let connect = || {
        PgConnection::establish(&database.url().replace("user=postgres", &format!("user={role}"))).unwrap()
    };
    migrate(&mut connect()).unwrap();
    for id in ["seen", "hidden"] {
        KeyRow { id, is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    }
    conn.batch_execute("UPDATE api_keys SET name = 'x'").unwrap();
    // The events stay, and revisions continue after them.
    Migrator::new().revert(&mut connect()).unwrap();
    for table in TABLES {
        let id = if table == "api_keys" { "id" } else { "key_id" };
        conn.batch_execute(&format!("CREATE POLICY hides ON {table} USING ({id} <> 'hidden')")).unwrap();
    }
    for table in TABLES {
        conn.batch_execute(&format!(
            "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
        ))
        .unwrap();
        let count = lines(&mut connect(), &format!("SELECT count(*)::text FROM {table}"));
        assert_ne!(
            count,
            lines(&mut conn, &format!("SELECT count(*)::text FROM {table}")),
            "{table} is hidden"
        );
        let refused = migrate(&mut connect()).unwrap_err();
        let shown = format!("{refused} {refused:?}");
        assert!(shown.contains("row-level security") && shown.contains(table), "{table}: {shown}");
        if table == "api_key_events" {
            // This does not use the crate's `migrate`, which sets row_security for all steps.
            let refused = connect().run_pending_migrations(MIGRATIONS).map(drop).unwrap_err().to_string();
            assert!(refused.contains("row-level security") && refused.contains(table), "{refused}");
        }
        conn.batch_execute(&format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")).unwrap();
    }
    for table in TABLES {
        conn.batch_execute(&format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")).unwrap();
    }
    conn.batch_execute(&format!("ALTER ROLE {role} BYPASSRLS")).unwrap();
    let mut migrator = connect();
    migrate(&mut migrator).unwrap();
    assert_eq!(check(&mut migrator).unwrap().obstacles, []);
    let denied = KeysDriver::new(&mut migrator).fetch_denied_keys_after(None, 10).unwrap();
    let denied: Vec<_> = denied.into_iter().map(|key| (String::from(key.id), key.revision)).collect();
    assert_eq!(denied, [("hidden".to_owned(), 3), ("seen".to_owned(), 3)], "above the hidden events");
}

/// The events without the actor and the reason, which are erased.
fn without_person(events: Vec<KeyEventSnapshot>) -> Vec<KeyEventSnapshot> {
    let erased = |mut event: KeyEventSnapshot| {
        (event.actor, event.reason) = (None, None);
        event
    };
    events.into_iter().map(erased).collect()
}

#[test]
fn erasing_a_person_changes_only_the_actor_and_the_reason_of_events() {
    let (_database, mut conn) = migrated_apart();
    for (id, tenant_id) in [("one", TENANT), ("two", TENANT), ("thawed", TENANT), ("other's", OTHER)] {
        KeyRow { id, tenant_id, ..KeyRow::default() }.insert(&mut conn);
    }
    conn.batch_execute(
        "UPDATE api_keys SET is_frozen = true, frozen_at = '2026-01-02Z', frozen_by = 'Ann', freeze_reason = 'of Ann';
         UPDATE api_keys SET status = 'revoked', revoked_at = '2026-01-03Z', revoked_reason = 'of Ann' WHERE id = 'two';
         UPDATE api_keys SET is_frozen = false WHERE id = 'thawed'",
    )
    .unwrap();
    wait_for_open_transactions(&mut conn);
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    let names =
        "SELECT DISTINCT key_id FROM api_key_events WHERE actor IS NOT NULL OR reason IS NOT NULL ORDER BY 1";
    assert_eq!(lines(&mut conn, names), ["one", "other's", "thawed", "two"]);

    for (index, left) in [(0, &["other's", "thawed", "two"][..]), (1, &["other's"])] {
        let [history_before, all_before] = [history(&mut conn, "one"), followed(&mut conn)];
        let sql = documented("## Personal data\n", index);
        let sql =
            sql.replace("tenant_id = '..'", &format!("tenant_id = '{TENANT}'")).replace("'..'", "'one'");
        conn.batch_execute(&sql).unwrap();
        assert_eq!(lines(&mut conn, names), left);
        // Later changes of the freeze and of the revocation do not bring the person back.
        let erased = if index == 0 {
            format!("id = 'one' AND tenant_id = '{TENANT}'")
        } else {
            format!("tenant_id = '{TENANT}'")
        };
        conn.batch_execute(&format!("UPDATE api_keys SET frozen_at = '2026-02-01Z' WHERE {erased} AND is_frozen; UPDATE api_keys SET revoked_at = '2026-02-01Z' WHERE {erased} AND status = 'revoked'")).unwrap();
        assert_eq!(lines(&mut conn, names), left);
        wait_for_open_transactions(&mut conn);

        let is_erased = |event: &KeyEventSnapshot| {
            event.tenant_id == tenant() && (index == 1 || event.key_id == key("one"))
        };
        let expected: Vec<_> = all_before
            .into_iter()
            .flat_map(|event| if is_erased(&event) { without_person(vec![event]) } else { vec![event] })
            .collect();
        let (all, here) = (followed(&mut conn), history(&mut conn, "one"));
        assert_eq!(all[..expected.len()], expected, "at the same positions");
        assert_eq!(here[..history_before.len()], without_person(history_before)[..]);
        assert!(!cache.catch_up(&mut conn).unwrap().is_reseeded);
        for (tenant_id, id, is_denied) in [
            (tenant(), "one", true),
            (tenant(), "two", true),
            (tenant(), "thawed", false),
            (other(), "other's", true),
        ] {
            assert_eq!(cache.contains(&tenant_id, &key(id)), is_denied, "{id}");
        }
        assert_eq!(cache.len(), 3);
    }
}

/// The events that a new follower of all tenants gets.
fn followed(conn: &mut PgConnection) -> Vec<KeyEventSnapshot> {
    KeysDriver::new(conn).fetch_key_events_after(None, 1000).unwrap()
}
