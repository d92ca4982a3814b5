//! Keys as the drivers make, change and return them.

use api_keys_driver::{ApiKeysFacadeDriver, KeySnapshot, KeysDriver, LockedKey, NewKey, Result};
use chrono::{DateTime, Utc};
use diesel::prelude::*;

use super::{at, key, tenant};

/// An active key without optional values. Its hash is its id.
pub(crate) fn new_key(id: &str) -> NewKey {
    NewKey::new(tenant(), key(id), "Production", "sk-live-abcd", id.into(), at("2026-01-01T00:00:00Z"))
}

/// Fetches a key of the tenant, which must exist.
pub(crate) fn fetch(conn: &mut PgConnection, id: &str) -> KeySnapshot {
    KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key(id)).unwrap().unwrap()
}

/// When and why a key was revoked.
pub(crate) fn revocation_of(conn: &mut PgConnection, id: &str) -> (Option<DateTime<Utc>>, Option<String>) {
    let key = ApiKeysFacadeDriver::new(conn).fetch_api_key_by_id(&tenant(), &key(id)).unwrap().unwrap();
    (key.revoked_at, key.revoked_reason)
}

/// Runs `work` on the locked key `"key"`, in its own transaction.
pub(crate) fn with_locked<T>(
    conn: &mut PgConnection,
    work: impl for<'c> FnOnce(&mut KeysDriver<'c>, LockedKey<'c>) -> Result<T>,
) -> Result<T> {
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let locked = keys.fetch_key_for_update(&tenant(), &key("key"))?.expect("a key to lock");
        work(&mut keys, locked)
    })
}

pub(crate) fn freeze(conn: &mut PgConnection, now: DateTime<Utc>) -> KeySnapshot {
    with_locked(conn, |keys, key| keys.update_key_frozen(key, now)).unwrap()
}

#[expect(clippy::redundant_closure_for_method_calls, reason = "the path is not general over the borrow")]
pub(crate) fn unfreeze(conn: &mut PgConnection) -> KeySnapshot {
    with_locked(conn, |keys, key| keys.update_key_unfrozen(key)).unwrap()
}

/// The ids of keys, in their order.
pub(crate) fn ids(keys: Vec<KeySnapshot>) -> Vec<String> {
    keys.into_iter().map(|key| key.id.into()).collect()
}
