//! Inserting a key: what is stored and what is refused, and that nothing shows the hash.

use std::error::Error as _;

use api_keys_driver::schema::api_keys;
use api_keys_driver::{Error, KeyHash, KeysDriver, NewKey, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use crate::support::{
    KeyRow, OTHER, assert_fields, at, existing_service, key, migrated, new_key, plans_of, statements_of,
    tenant,
};

#[test]
fn a_new_key_is_stored_with_every_column_and_recognised_by_its_hash() {
    let (_database, mut conn) = migrated();
    let new = NewKey {
        user_id: Some("user".into()),
        permissions_json: Some("[\"chat\", not json".into()),
        allowed_workers_json: Some(String::new()),
        rate_limit_rpm: Some(60),
        max_concurrent_runs: Some(0),
        status: "expired".into(),
        expires_at: Some(at("2026-04-01T00:00:00.000001Z")),
        is_synthetic: true,
        synthetic_scenario_id: Some("scenario".into()),
        ..new_key("key")
    };
    let mut keys = KeysDriver::new(&mut conn);

    let stored = keys.insert_key(&new).unwrap();
    assert_fields!(
        stored,
            id: key("key"),
            tenant_id: tenant(),
            name: "Production".into(),
            key_prefix: "sk-live-abcd".into(),
            status: "expired".into(),
            is_frozen: false,
            frozen_at: None,
            created_at: at("2026-01-01T00:00:00Z"),
            last_used_at: None,
            expires_at: Some(at("2026-04-01T00:00:00.000001Z")),
            total_requests: 0,
            is_synthetic: true,
            revision: 1,
    );
    assert_fields!(
        keys.fetch_key_by_hash(&KeyHash::from("key")).unwrap().unwrap(),
            id: key("key"),
            tenant_id: tenant(),
            status: "expired".into(),
            is_frozen: false,
            expires_at: Some(at("2026-04-01T00:00:00.000001Z")),
            revoked_at: None,
            permissions_json: Some("[\"chat\", not json".into()),
            allowed_workers_json: Some(String::new()),
            rate_limit_rpm: Some(60),
            max_concurrent_runs: Some(0),
            is_synthetic: true,
            revision: 1,
    );
    let rest = api_keys::table
        .select((api_keys::user_id, api_keys::synthetic_scenario_id))
        .get_result::<(Option<String>, Option<String>)>(&mut conn)
        .unwrap();
    assert_eq!(rest, (Some("user".into()), Some("scenario".into())));
}

#[test]
fn omitted_fields_of_a_new_key_are_null() {
    let (_database, mut conn) = migrated();
    let mut keys = KeysDriver::new(&mut conn);
    keys.insert_key(&new_key("key")).unwrap();
    let auth = keys.fetch_key_by_hash(&KeyHash::from("key")).unwrap().unwrap();
    assert_eq!((auth.expires_at, auth.revoked_at), (None, None));
    assert_eq!((auth.permissions_json, auth.allowed_workers_json), (None, None));
    assert_eq!((auth.rate_limit_rpm, auth.max_concurrent_runs), (None, None));
    assert_eq!((auth.status.as_str(), auth.is_synthetic), ("active", false));
}

/// A service may have given its constraints other names.
#[test]
fn a_refusal_is_recognised_by_the_column_whatever_the_constraint_is_called() {
    let Some((_database, mut conn)) = existing_service() else { return };
    conn.batch_execute(
        "ALTER TABLE api_keys RENAME CONSTRAINT api_keys_pkey TO pk_of_keys;
         ALTER TABLE api_keys RENAME CONSTRAINT api_keys_tenant_id_fkey TO fk_1;
         ALTER TABLE api_keys RENAME CONSTRAINT api_keys_user_id_fkey TO fk_2;
         ALTER TABLE api_keys ADD CONSTRAINT a_hash_is_unique UNIQUE (key_hash), ADD UNIQUE (tenant_id, name)",
    )
    .unwrap();
    migrate(&mut conn).unwrap();
    KeyRow { id: "taken", name: "(id)=(key)", ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);
    let free = |id| NewKey { id: key(id), name: id.into(), ..new_key(id) };
    let hash = || KeyHash::from("taken");
    let many = keys.insert_keys(&[free("a"), NewKey { key_hash: hash(), ..free("b") }]).unwrap_err();
    assert!(matches!(&many, Error::KeyHashExists(id) if *id == key("b")), "{many:?}");
    let many = keys.insert_keys(&[free("a"), NewKey { id: key("taken"), ..free("b") }]).unwrap_err();
    assert!(matches!(&many, Error::KeyExists(id) if *id == key("taken")), "{many:?}");
    let tenant =
        keys.insert_key(&NewKey { tenant_id: "33333333-3333-3333-3333-333333333333".into(), ..free("a") });
    assert!(matches!(tenant, Err(Error::UnknownTenant(_))), "{tenant:?}");
    let user = keys.insert_key(&NewKey { user_id: Some("nobody".into()), ..free("a") });
    assert!(matches!(user, Err(Error::UnknownUser(_))), "{user:?}");
    // The values of another constraint are not mistaken for a column.
    let other = keys.insert_key(&NewKey { name: "(id)=(key)".into(), ..free("a") }).unwrap_err();
    assert!(!matches!(other, Error::KeyExists(_)), "{other:?}");
}

#[test]
fn an_id_and_a_hash_that_exist_are_named_whichever_tenant_has_them() {
    let (_database, mut conn) = migrated();
    KeyRow { id: "taken", key_hash: Some("5ec2e7"), tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);

    let by_id = keys.insert_key(&NewKey { id: key("taken"), ..new_key("key") }).unwrap_err();
    assert!(matches!(&by_id, Error::KeyExists(id) if *id == key("taken")), "{by_id:?}");
    let by_hash = keys.insert_key(&NewKey { key_hash: "5ec2e7".into(), ..new_key("key") }).unwrap_err();
    assert!(matches!(by_hash, Error::KeyHashExists(_)), "{by_hash:?}");
    assert!(by_hash.source().is_none(), "what the server said holds the hash");
    assert_eq!(keys.count_keys(&tenant()).unwrap(), 0);
}

#[test]
fn a_taken_hash_in_a_nested_transaction_leaves_the_outer_one_usable() {
    let (_database, mut conn) = migrated();
    KeyRow { id: "old", key_hash: Some("taken"), ..KeyRow::default() }.insert(&mut conn);
    let stored = conn.transaction(|conn| {
        let taken = NewKey { key_hash: "taken".into(), ..new_key("key") };
        let tried = conn.transaction(|conn| KeysDriver::new(conn).insert_key(&taken));
        assert!(matches!(tried, Err(Error::KeyHashExists(_))), "{tried:?}");
        KeysDriver::new(conn).insert_key(&new_key("key"))
    });
    assert_eq!(stored.unwrap().id, key("key"));
}

#[test]
fn neither_a_new_key_nor_a_statement_nor_an_error_shows_the_hash() {
    let (_database, mut conn) = migrated();
    let secret = NewKey { key_hash: "5ec2e7".into(), ..new_key("key") };
    assert!(!format!("{secret:?} {secret:#?}").contains("5ec2e7"));

    let (errors, statements) = statements_of(&mut conn, |conn| {
        let mut keys = KeysDriver::new(conn);
        keys.insert_key(&secret).unwrap();
        assert!(keys.fetch_key_by_hash(&KeyHash::from("5ec2e7")).unwrap().is_some());
        let taken = keys.insert_key(&NewKey { id: key("another"), ..secret.clone() }).unwrap_err();
        let refused = keys.insert_key(&NewKey { name: "x".repeat(101), ..secret.clone() }).unwrap_err();
        [taken, refused]
    });
    assert_eq!(statements.len(), 3, "the last one is refused before it is sent");
    assert!(!format!("{statements:?} {errors:?}").contains("5ec2e7"));
}

#[test]
fn an_insert_reads_no_table() {
    plans_of("insert_key").read(&[]);
}
