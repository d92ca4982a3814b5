//! Inserting a key that replaces another, and the documented rotation.

use std::thread;

use api_keys_driver::{Change, Error, KeyHash, KeySnapshot, KeySuccessor, KeysDriver, Page, Result};
use chrono::TimeDelta;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;

use self::rotation::rotate;
use crate::support::{
    KeyRow, assert_fields, at, existing_service, fetch, key, migrated, plans_of, statements_of, tenant,
    wait_until_one_waits, with,
};

#[path = "../../examples/lifecycle/rotate.rs"]
mod rotation;

#[test]
fn the_documented_rotation_is_the_one_that_is_tested() {
    let source = include_str!("../../src/keys_driver/successor.rs");
    let documented = source.lines().filter_map(|line| line.trim_start().strip_prefix("/// "));
    let (_, tested) = include_str!("../../examples/lifecycle/rotate.rs").split_once("fn rotate(").unwrap();
    // Their line breaks are in different places.
    let squeezed = |text: &str| text.replace(|c: char| c.is_whitespace() || c == ',', "");
    assert!(squeezed(&documented.collect::<String>()).contains(&squeezed(tested)));
}

const NOW: &str = "2026-06-01T00:00:00Z";
const GRACE_ENDS: &str = "2026-06-02T00:00:00Z";

fn successor(id: &str) -> KeySuccessor {
    KeySuccessor::new(key(id), "sk-live-next", id.into(), at(NOW))
}

fn count(conn: &mut PgConnection) -> i64 {
    KeysDriver::new(conn).count_keys(&tenant()).unwrap()
}

/// Inserts a successor of the key, whatever its state.
fn insert_successor(conn: &mut PgConnection, new: &KeySuccessor) -> Result<KeySnapshot> {
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let old = keys.fetch_key_for_update(&tenant(), &key("key"))?.expect("a key");
        keys.insert_key_successor(&old, new)
    })
}

/// A key with a value in every column, among other keys.
fn with_every_column() -> (throwaway_postgres::Database, PgConnection) {
    let (database, mut conn) = migrated();
    KeyRow { id: "beside", ..KeyRow::default() }.insert(&mut conn);
    KeyRow::default().insert(&mut conn);
    conn.batch_execute(
        r#"UPDATE api_keys SET user_id = 'user', permissions_json = '["read"]', allowed_workers_json = '[]',
             rate_limit_rpm = 60, max_concurrent_runs = 2, expires_at = '2026-09-01Z', last_used_at = '2026-05-01Z',
             total_requests = 7, is_synthetic = true, synthetic_scenario_id = 'scenario'
           WHERE id = 'key'"#,
    )
    .unwrap();
    (database, conn)
}

/// A row as text, without the columns that differ for each key.
fn copied(conn: &mut PgConnection, id: &str) -> String {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        copied: String,
    }
    let row: Row = diesel::sql_query(
        "SELECT (to_jsonb(k) - '{id,key_prefix,key_hash,created_at,last_used_at,total_requests,revision}'::text[])::text
           AS copied FROM api_keys k WHERE id = $1",
    )
    .bind::<Text, _>(id)
    .get_result(conn)
    .unwrap();
    row.copied
}

#[test]
fn a_successor_copies_every_column_that_is_not_its_own() {
    let (_database, mut conn) = with_every_column();
    for state in [
        "status = 'active'",
        "is_frozen = true, frozen_at = '2026-05-01Z', frozen_by = 'ops', freeze_reason = 'odd'",
        "status = 'revoked', revoked_at = '2026-05-01Z', revoked_reason = 'leaked'",
        "status = 'on hold', user_id = NULL, permissions_json = NULL, expires_at = NULL",
    ] {
        conn.batch_execute(&format!("UPDATE api_keys SET {state} WHERE id = 'key'")).unwrap();
        let old = fetch(&mut conn, "key");
        conn.test_transaction::<_, Error, _>(|conn| {
            let new = insert_successor(conn, &successor("new"))?;
            assert_eq!(copied(conn, "new"), copied(conn, "key"), "{state}");
            let expected = with!(
                old.clone(), id: key("new"), key_prefix: "sk-live-next".into(), created_at: at(NOW),
                last_used_at: None, total_requests: 0, revision: 1
            );
            assert_eq!(new, expected, "{state}");
            assert_eq!(fetch(conn, "key"), old, "the old key stays as it is");
            let auth = KeysDriver::new(conn).fetch_key_by_hash(&KeyHash::from("new"))?.unwrap();
            assert_eq!(auth.id, key("new"));
            Ok(())
        });
    }
}

#[test]
fn a_successor_has_the_expiry_of_the_old_key_unless_one_is_given() {
    let (_database, mut conn) = with_every_column();
    let later = at("2027-01-01T00:00:00Z");
    for (index, (expires_at, expected)) in [
        (Change::Keep, Some(at("2026-09-01T00:00:00Z"))),
        (Change::Set(None), None),
        (Change::Set(Some(later)), Some(later)),
    ]
    .into_iter()
    .enumerate()
    {
        let new = KeySuccessor { expires_at, ..successor(&index.to_string()) };
        assert_eq!(insert_successor(&mut conn, &new).unwrap().expires_at, expected, "{expires_at:?}");
    }
}

#[test]
fn the_permissions_of_a_key_are_found_by_id_within_its_tenant() {
    let (_database, mut conn) = with_every_column();
    let mut keys = KeysDriver::new(&mut conn);
    let auth = keys.fetch_key_auth_by_id(&tenant(), &key("key")).unwrap().unwrap();
    assert_eq!(keys.fetch_key_by_hash(&KeyHash::from("key")).unwrap(), Some(auth.clone()));
    assert_fields!(
        auth,
        id: key("key"), tenant_id: tenant(), user_id: Some("user".into()), is_synthetic: true,
        permissions_json: Some(r#"["read"]"#.into()), allowed_workers_json: Some("[]".into()),
        rate_limit_rpm: Some(60), max_concurrent_runs: Some(2),
    );
    for (tenant_id, key_id) in [(crate::support::other(), key("key")), (tenant(), key("missing"))] {
        assert_eq!(keys.fetch_key_auth_by_id(&tenant_id, &key_id).unwrap(), None);
    }
}

#[test]
fn a_taken_id_and_a_taken_hash_of_a_successor_are_named() {
    let (_database, mut conn) = with_every_column();
    let by_id = insert_successor(&mut conn, &successor("beside")).unwrap_err();
    assert!(matches!(&by_id, Error::KeyExists(id) if *id == key("beside")), "{by_id:?}");
    let by_hash = KeySuccessor { key_hash: "beside".into(), ..successor("new") };
    let by_hash = insert_successor(&mut conn, &by_hash).unwrap_err();
    assert!(matches!(by_hash, Error::KeyHashExists(_)), "{by_hash:?}");
    assert_eq!(count(&mut conn), 2);
}

#[test]
fn a_successors_text_that_does_not_fit_is_refused_before_anything_is_sent() {
    let (_database, mut conn) = with_every_column();
    let (id, prefix) = ("x".repeat(36) + " ", "sk-live-abcd ".to_owned());
    for (new, expected) in [
        (KeySuccessor { id: id.into(), ..successor("new") }, ("id", 36)),
        (KeySuccessor { key_prefix: prefix, ..successor("new") }, ("key_prefix", 12)),
        (KeySuccessor { key_hash: "ß".repeat(129).into(), ..successor("new") }, ("key_hash", 128)),
    ] {
        let (refused, sent) = statements_of(&mut conn, |conn| insert_successor(conn, &new));
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused, Error::TooLong { column, limit } if (column, limit) == expected),
            "{refused:?}"
        );
        assert!(sent.iter().all(|sql| !sql.contains("INSERT")), "{sent:#?}");
    }
}

#[test]
fn a_lock_that_is_lost_or_of_another_connection_inserts_no_successor() {
    let (database, mut conn) = with_every_column();
    let gone = conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let old = keys.fetch_key_for_update(&tenant(), &key("key"))?.expect("a key");
        diesel::sql_query("DELETE FROM api_keys WHERE id = 'key'").execute(keys.connection())?;
        keys.insert_key_successor(&old, &successor("new"))
    });
    assert!(matches!(gone, Err(Error::LockLost(_))), "{gone:?}");

    let mut second = database.connect().unwrap();
    let elsewhere = conn.transaction(|conn| {
        let old = KeysDriver::new(conn).fetch_key_for_update(&tenant(), &key("key"))?.expect("a key");
        second.transaction(|second| KeysDriver::new(second).insert_key_successor(&old, &successor("new")))
    });
    assert!(matches!(elsewhere, Err(Error::LockedElsewhere(_))), "{elsewhere:?}");
    assert_eq!(count(&mut conn), 2);
}

#[test]
fn a_rotation_is_all_or_nothing() {
    let (_database, mut conn) = with_every_column();
    let seen = fetch(&mut conn, "key");

    let taken = KeySuccessor { key_hash: "beside".into(), ..successor("new") };
    let failed = rotate(&mut conn, &seen, &taken, at(GRACE_ENDS));
    assert!(matches!(failed, Err(Error::KeyHashExists(_))), "{failed:?}");
    assert_eq!(fetch(&mut conn, "key"), seen);

    let new = rotate(&mut conn, &seen, &successor("new"), at(GRACE_ENDS)).unwrap().expect("a successor");
    assert_eq!(new.expires_at, seen.expires_at);
    assert_eq!(fetch(&mut conn, "key").expires_at, Some(at(GRACE_ENDS)));
    let mut keys = KeysDriver::new(&mut conn);
    let mut restrictions = |id| {
        let auth = keys.fetch_key_auth_by_id(&tenant(), &key(id)).unwrap().unwrap();
        (auth.permissions_json, auth.allowed_workers_json, auth.rate_limit_rpm, auth.max_concurrent_runs)
    };
    assert_eq!(restrictions("new"), restrictions("key"));
}

#[test]
fn a_key_that_was_changed_since_it_was_read_or_is_not_active_is_not_rotated() {
    let (_database, mut conn) = with_every_column();
    for change in [
        "name = 'Other'",
        "is_frozen = true",
        "status = 'revoked'",
        "status = 'expired'",
        "expires_at = '2026-06-01T12:00:00Z'",
        "expires_at = '2026-05-31Z'",
        "tenant_id = '22222222-2222-2222-2222-222222222222'",
    ] {
        let seen = fetch(&mut conn, "key");
        conn.test_transaction::<_, Error, _>(|conn| {
            conn.batch_execute(&format!("UPDATE api_keys SET {change} WHERE id = 'key'"))?;
            let rotated = rotate(conn, &seen, &successor("new"), at(GRACE_ENDS))?;
            assert_eq!(rotated, None, "{change}, unseen");
            if let Some(seen) = KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key("key"))? {
                let rotated = rotate(conn, &seen, &successor("new"), at(GRACE_ENDS))?;
                assert_eq!(rotated.is_some(), change.starts_with("name"), "{change}, seen");
            }
            Ok(())
        });
    }
    let seen = fetch(&mut conn, "key");
    let ended_long_ago = at("2026-01-01T00:00:00Z");
    conn.batch_execute("UPDATE api_keys SET expires_at = '2026-05-31Z' WHERE id = 'key'").unwrap();
    let expired = fetch(&mut conn, "key");
    assert_eq!(rotate(&mut conn, &expired, &successor("new"), ended_long_ago).unwrap(), None);
    assert_eq!(rotate(&mut conn, &seen, &successor("new"), ended_long_ago).unwrap(), None);
}

#[test]
fn of_two_concurrent_rotations_one_inserts_a_key() {
    for second_ends in ["2026-06-01T06:00:00Z", GRACE_ENDS, "2026-06-09T00:00:00Z"] {
        let (database, mut conn) = with_every_column();
        let seen = fetch(&mut conn, "key");
        let mut watcher = database.connect().unwrap();
        let second = conn.transaction::<_, Error, _>(|conn| {
            // The first rotation holds the lock and has done its work, but has not committed.
            assert!(rotate(conn, &seen, &successor("first"), at(GRACE_ENDS))?.is_some());
            let mut second = database.connect().unwrap();
            let seen = seen.clone();
            let second =
                thread::spawn(move || rotate(&mut second, &seen, &successor("second"), at(second_ends)));
            wait_until_one_waits(&mut watcher);
            Ok(second)
        });
        assert_eq!(second.unwrap().join().unwrap().unwrap(), None, "{second_ends}");
        assert_eq!(count(&mut conn), 3);
        assert_eq!(fetch(&mut conn, "key").expires_at, Some(at(GRACE_ENDS)));
    }
}

#[test]
fn a_rotation_appends_events_for_both_keys() {
    let (_database, mut conn) = with_every_column();
    conn.batch_execute("UPDATE api_keys SET expires_at = NULL").unwrap();
    let seen = fetch(&mut conn, "key");
    rotate(&mut conn, &seen, &successor("new"), seen.created_at + TimeDelta::days(365)).unwrap().unwrap();
    let mut kinds = |id| {
        let events = KeysDriver::new(&mut conn).fetch_key_events(&tenant(), &key(id), Page::default());
        events.unwrap().into_iter().map(|event| event.kind.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(kinds("new"), ["inserted"]);
    assert_eq!(kinds("key").last().unwrap(), "expiry_set");
}

#[test]
fn a_successor_of_a_key_of_the_existing_service_has_the_same_columns() {
    let Some((_database, mut conn)) = existing_service() else { return };
    KeyRow { permissions_json: Some("[]"), key_prefix: "sk-live-ab", ..KeyRow::default() }.insert(&mut conn);
    api_keys_driver::migrate(&mut conn).unwrap();
    let seen = fetch(&mut conn, "key");
    rotate(&mut conn, &seen, &successor("new"), at(GRACE_ENDS)).unwrap().expect("a successor");
    conn.batch_execute("UPDATE api_keys SET expires_at = NULL").unwrap();
    assert_eq!(copied(&mut conn, "new"), copied(&mut conn, "key"));
}

#[test]
fn a_successor_finds_its_predecessor_by_the_primary_key() {
    plans_of("insert_key_successor").read(&["Index Scan using api_keys_pkey"]);
}
