//! Inserting a batch of keys in one statement.

use std::thread;

use api_keys_driver::{Error, KeyId, KeysDriver, NewKey};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;

use crate::support::{
    KeyRow, OTHER, TENANT, at, existing_service, key, longest, migrated, new_key, other, plans_of,
    statements_of, tenant, wait_until_one_waits,
};

fn with_everything(id: &str) -> NewKey {
    NewKey {
        user_id: Some("user".into()),
        permissions_json: Some("{\"a\": [\"b\", null, 'c\\']}".into()),
        allowed_workers_json: Some(String::new()),
        rate_limit_rpm: Some(i32::MAX),
        max_concurrent_runs: Some(0),
        status: "on hold".into(),
        expires_at: Some(at("2027-01-01T00:00:00.000001Z")),
        is_synthetic: true,
        synthetic_scenario_id: Some("NULL".into()),
        ..new_key(id)
    }
}

/// The rows as text, by id.
fn rows(conn: &mut PgConnection) -> Vec<String> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        row: String,
    }
    let rows: Vec<Row> =
        diesel::sql_query("SELECT k::text AS row FROM api_keys k ORDER BY id").load(conn).unwrap();
    rows.into_iter().map(|Row { row }| row).collect()
}

#[test]
fn a_batch_of_keys_is_stored_like_single_keys_and_returned_in_its_order() {
    let keys = [
        with_everything("c"),
        new_key("a"),
        NewKey { tenant_id: other(), name: "{}, \"x\", \\".into(), ..new_key("b") },
        NewKey {
            expires_at: Some(DateTime::<Utc>::MAX_UTC),
            created_at: DateTime::<Utc>::MIN_UTC,
            ..new_key("d")
        },
    ];
    let (_database, mut conn) = migrated();
    let one_by_one: Vec<_> =
        keys.iter().map(|key| KeysDriver::new(&mut conn).insert_key(key).unwrap()).collect();
    let rows_one_by_one = rows(&mut conn);

    let (_database, mut conn) = migrated();
    assert_eq!(KeysDriver::new(&mut conn).insert_keys(&keys).unwrap(), one_by_one);
    assert_eq!(rows(&mut conn), rows_one_by_one);
}

#[test]
fn a_batch_of_keys_is_one_prepared_statement_and_an_empty_one_sends_nothing() {
    let (_database, mut conn) = migrated();
    for size in [0_u32, 1, 3, 5_000] {
        let keys: Vec<_> = (0..size).map(|n| new_key(&format!("{size}-{n}"))).collect();
        let (stored, sent) = statements_of(&mut conn, |conn| KeysDriver::new(conn).insert_keys(&keys));
        let stored: Vec<KeyId> = stored.unwrap().into_iter().map(|key| key.id).collect();
        assert_eq!(stored, keys.iter().map(|key| key.id.clone()).collect::<Vec<_>>());
        assert_eq!(sent.len(), usize::from(size > 0));
    }
    let prepared = "SELECT FROM pg_prepared_statements WHERE statement LIKE 'INSERT%'";
    assert_eq!(diesel::sql_query(prepared).execute(&mut conn).unwrap(), 1);
}

#[test]
fn a_key_that_already_exists_is_named_and_no_key_is_stored() {
    let (_database, mut conn) = migrated();
    KeyRow { id: "taken", key_hash: Some("5ec2e7"), tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    let with_hash = |id: &str, hash: &str| NewKey { key_hash: hash.into(), ..new_key(id) };
    let fresh = || (0..50).map(|n| new_key(&format!("fresh {n}")));
    let is_id = |error: &Error, id: &str| matches!(error, Error::KeyExists(found) if *found == key(id));
    let is_hash = |error: &Error, id: &str| matches!(error, Error::KeyHashExists(found) if *found == key(id));

    for (colliding, is_named) in [
        (with_hash("taken", "new"), &is_id as &dyn Fn(&Error, &str) -> bool),
        (with_hash("thief", "5ec2e7"), &is_hash),
        (with_hash("twin", "fresh 7"), &is_hash),
        (with_hash("fresh 7", "new"), &is_id),
    ] {
        let name = colliding.id.clone();
        let batch: Vec<_> = fresh().chain([colliding]).collect();
        let error = KeysDriver::new(&mut conn).insert_keys(&batch).unwrap_err();
        // Of two equal values in one batch, either is named.
        let is_twin = name == key("twin") && is_named(&error, "fresh 7");
        assert!(is_named(&error, name.as_str()) || is_twin, "{name}: {error:?}");
        assert!(!format!("{error:?} {error}").contains("5ec2e7"), "{error:?}");
        assert!(std::error::Error::source(&error).is_none());
        assert_eq!(KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap(), 0);
    }
}

#[test]
fn a_key_that_another_transaction_inserts_first_is_named_after_the_wait() {
    let (database, mut conn) = migrated();
    let mut watcher = database.connect().unwrap();
    conn.batch_execute("BEGIN").unwrap();
    KeyRow { id: "first", ..KeyRow::default() }.insert(&mut conn);
    thread::scope(|scope| {
        let mut second = database.connect().unwrap();
        let inserting = scope.spawn(move || {
            KeysDriver::new(&mut second).insert_keys(&[new_key("a"), new_key("first"), new_key("z")])
        });
        wait_until_one_waits(&mut watcher);
        conn.batch_execute("COMMIT").unwrap();
        let named = inserting.join().unwrap();
        assert!(matches!(&named, Err(Error::KeyExists(id)) if *id == key("first")), "{named:?}");
    });
}

type Set = fn(&mut NewKey, String);

/// Each text column, and how a new key sets it.
const TEXTS: [(&str, Set); 10] = [
    ("tenant_id", |key, text| key.tenant_id = text.into()),
    ("id", |key, text| key.id = text.into()),
    ("user_id", |key, text| key.user_id = Some(text)),
    ("name", |key, text| key.name = text),
    ("key_prefix", |key, text| key.key_prefix = text),
    ("key_hash", |key, text| key.key_hash = text.into()),
    ("permissions_json", |key, text| key.permissions_json = Some(text)),
    ("allowed_workers_json", |key, text| key.allowed_workers_json = Some(text)),
    ("status", |key, text| key.status = text.into()),
    ("synthetic_scenario_id", |key, text| key.synthetic_scenario_id = Some(text)),
];

#[test]
fn a_text_is_stored_unchanged_or_refused_with_its_column() {
    let (_database, mut conn) = migrated();
    for (column, set) in TEXTS {
        let length = longest(&mut conn, "api_keys", column);
        let insert = |conn: &mut PgConnection, text: &str| {
            let mut key = new_key("key");
            set(&mut key, text.into());
            let (one, sent) = statements_of(conn, |conn| KeysDriver::new(conn).insert_key(&key));
            let (many, sent_too) =
                statements_of(conn, |conn| KeysDriver::new(conn).insert_keys(&[new_key("beside"), key]));
            (one.map(|_| ()), many.map(|_| ()), sent.len() + sent_too.len())
        };
        let refused = |(one, many, sent): (Result<(), Error>, Result<(), Error>, usize)| {
            assert_eq!(sent, 0, "{column}");
            let Err(Error::InBatch { index: 1, source }) = many else { panic!("{column}: {many:?}") };
            assert_eq!(format!("{source:?}"), format!("{:?}", one.as_ref().unwrap_err()));
            one.unwrap_err()
        };
        if let Some(limit) = length {
            for long in ["ß".repeat(limit + 1), "ß".repeat(limit) + " ", " ".repeat(limit + 1)] {
                let error = refused(insert(&mut conn, &long));
                assert!(
                    matches!(error, Error::TooLong { column: of, limit: at } if (of, at) == (column, limit)),
                    "{column}: {error:?}"
                );
            }
            for longest in ["ß".repeat(limit), "x".repeat(limit - 1) + " "] {
                conn.test_transaction::<_, Error, _>(|conn| {
                    let mut key = new_key("key");
                    set(&mut key, longest.clone());
                    KeysDriver::new(conn).insert_key(&key)?;
                    let stored = format!("SELECT FROM api_keys WHERE {column} = $1");
                    let found = diesel::sql_query(stored).bind::<Text, _>(&longest).execute(conn)?;
                    assert_eq!(found, 1, "{column} is stored whole");
                    Ok(())
                });
            }
        }
        let error = refused(insert(&mut conn, "a\0b"));
        assert!(matches!(error, Error::NulByte { column: of } if of == column), "{column}: {error:?}");
    }
}

#[test]
fn a_negative_limit_is_refused_with_its_column() {
    let (_database, mut conn) = migrated();
    for (column, key) in [
        ("rate_limit_rpm", NewKey { rate_limit_rpm: Some(-1), ..new_key("key") }),
        ("max_concurrent_runs", NewKey { max_concurrent_runs: Some(i32::MIN), ..new_key("key") }),
    ] {
        let (refused, sent) = statements_of(&mut conn, |conn| KeysDriver::new(conn).insert_key(&key));
        assert!(matches!(refused, Err(Error::Negative { column: of }) if of == column), "{refused:?}");
        assert!(sent.is_empty());
    }
}

#[test]
fn an_unknown_tenant_and_an_unknown_user_of_the_existing_service_are_named() {
    let Some((_database, mut conn)) = existing_service() else { return };
    api_keys_driver::migrate(&mut conn).unwrap();
    conn.batch_execute("INSERT INTO users (id, clerk_user_id, email) VALUES ('known', 'known', 'known')")
        .unwrap();
    let unknown = "33333333-3333-3333-3333-333333333333";
    let of_user = |id: &str, user: &str| NewKey { user_id: Some(user.into()), ..new_key(id) };
    let of_tenant = |id: &str, tenant: &str| NewKey { tenant_id: tenant.into(), ..new_key(id) };

    for bad in [unknown, "not a uuid", "", "' OR true", "11111111-1111-1111-1111-11111111111A"] {
        for error in [
            KeysDriver::new(&mut conn).insert_key(&of_tenant("key", bad)).unwrap_err(),
            KeysDriver::new(&mut conn)
                .insert_keys(&[new_key("a"), of_tenant("b", bad), of_tenant("c", OTHER)])
                .unwrap_err(),
        ] {
            assert!(matches!(&error, Error::UnknownTenant(tenant) if tenant.as_str() == bad), "{error:?}");
            assert!(std::error::Error::source(&error).is_none());
        }
    }
    for error in [
        KeysDriver::new(&mut conn).insert_key(&of_user("key", "nobody")).unwrap_err(),
        KeysDriver::new(&mut conn)
            .insert_keys(&[of_user("a", "known"), new_key("b"), of_user("c", "nobody")])
            .unwrap_err(),
    ] {
        assert!(matches!(&error, Error::UnknownUser(user) if user == "nobody"), "{error:?}");
    }
    let stored = KeysDriver::new(&mut conn).insert_keys(&[of_user("a", "known"), of_tenant("b", OTHER)]);
    assert_eq!(stored.unwrap().len(), 2);
    assert_eq!(KeysDriver::new(&mut conn).count_keys(&TENANT.into()).unwrap(), 1);
}

#[test]
fn other_errors_of_the_server_are_returned_without_the_row() {
    let (_database, mut conn) = migrated();
    conn.batch_execute("ALTER TABLE api_keys ADD CONSTRAINT odd CHECK (name <> 'odd')").unwrap();
    let odd = NewKey { name: "odd".into(), key_hash: "5ec2e7".into(), ..new_key("key") };
    for error in [
        KeysDriver::new(&mut conn).insert_key(&odd).unwrap_err(),
        KeysDriver::new(&mut conn).insert_keys(&[new_key("a"), odd.clone()]).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Query(_)), "{error:?}");
        let Error::Query(diesel::result::Error::DatabaseError(_, said)) = &error else { panic!("{error:?}") };
        let all = format!("{error:?} {:?} {:?} {:?}", said.message(), said.details(), said.hint());
        assert!(!all.contains("5ec2e7"), "{all}");
    }
}

#[test]
fn created_at_keeps_its_microseconds() {
    let (_database, mut conn) = migrated();
    let created_at = at("2026-01-01T00:00:00.123456Z") + TimeDelta::nanoseconds(999);
    let stored = KeysDriver::new(&mut conn).insert_keys(&[NewKey { created_at, ..new_key("key") }]).unwrap();
    assert_eq!(stored[0].created_at, at("2026-01-01T00:00:00.123456Z"));
}

#[test]
fn many_inserts_read_no_table() {
    plans_of("insert_keys").read(&[]);
}
