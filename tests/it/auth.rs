//! Finding a key by its hash, and by its id with its permissions.

use api_keys_driver::{Error, KeyHash, KeysDriver};
use diesel::prelude::*;

use crate::support::{KeyRow, OTHER, at, migrated, other, plans_of};

#[test]
fn a_key_in_any_state_is_found_by_its_hash_and_only_by_that() {
    let (_database, mut conn) = migrated();
    let past = Some(at("2020-01-01T00:00:00Z"));
    KeyRow { id: "revoked", status: "revoked", revoked_at: past, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "frozen", is_frozen: true, tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    KeyRow { id: "expired", expires_at: past, ..KeyRow::default() }.insert(&mut conn);
    let mut keys = KeysDriver::new(&mut conn);

    let revoked = keys.fetch_key_by_hash(&KeyHash::from("revoked")).unwrap().unwrap();
    assert_eq!((revoked.status.as_str(), revoked.revoked_at), ("revoked", past));
    let frozen = keys.fetch_key_by_hash(&KeyHash::from("frozen")).unwrap().unwrap();
    assert_eq!((frozen.tenant_id, frozen.is_frozen), (other(), true));
    assert_eq!(keys.fetch_key_by_hash(&KeyHash::from("expired")).unwrap().unwrap().expires_at, past);
    for hash in ["", "REVOKED", "revoked ", "revoke", "%"] {
        assert_eq!(keys.fetch_key_by_hash(&hash.into()).unwrap(), None, "{hash:?}");
    }
}

#[test]
fn a_lookup_by_hash_that_fails_is_an_error_and_not_none() {
    let (_database, mut conn) = migrated();
    diesel::sql_query("DROP TABLE api_keys").execute(&mut conn).unwrap();
    let failed = KeysDriver::new(&mut conn).fetch_key_by_hash(&KeyHash::from("key"));
    assert!(matches!(failed, Err(Error::SchemaMismatch(_))), "{failed:?}");
}

#[test]
fn a_key_is_found_by_its_hash_in_the_unique_index() {
    plans_of("fetch_key_by_hash").read(&["Index Scan using uq_api_keys_key_hash"]);
}

#[test]
fn a_key_by_id_is_found_by_the_primary_key() {
    plans_of("fetch_key_auth_by_id").read(&["Index Scan using api_keys_pkey"]);
}
