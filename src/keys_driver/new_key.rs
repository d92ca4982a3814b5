//! Inserting a key.

use chrono::{DateTime, Utc};
use diesel::prelude::*;

use super::{KeyHash, KeySnapshot, KeysDriver};
use crate::error::is_constraint;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{Error, KeyId, KeyStatus, Result, TenantId};

/// A key to be inserted: every column that an engine sets.
///
/// The engine makes the secret and hands over what is kept of it, a prefix and a hash.
/// [`NewKey::new`] asks for what a key must have; the rest is set like any field:
///
/// ```
/// # use api_keys_driver::{KeyHash, KeyId, NewKey, TenantId};
/// # use chrono::{DateTime, TimeDelta, Utc};
/// # fn key(tenant_id: TenantId, id: KeyId, prefix: &str, hash: KeyHash, now: DateTime<Utc>) -> NewKey {
/// NewKey {
///     expires_at: Some(now + TimeDelta::days(90)),
///     rate_limit_rpm: Some(60),
///     ..NewKey::new(tenant_id, id, "Production", prefix, hash, now)
/// }
/// # }
/// ```
///
/// A hash is a type of its own, so that a swapped pair does not compile, which would store the hash in a
/// column that everybody sees:
///
/// ```compile_fail,E0308
/// # use api_keys_driver::{KeyHash, KeyId, NewKey, TenantId};
/// # use chrono::{DateTime, TimeDelta, Utc};
/// # fn key(tenant_id: TenantId, id: KeyId, prefix: &str, hash: KeyHash, now: DateTime<Utc>) -> NewKey {
/// NewKey {
///     expires_at: Some(now + TimeDelta::days(90)),
///     rate_limit_rpm: Some(60),
///     ..NewKey::new(tenant_id, id, "Production", hash, prefix, now)
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// The key's own id, at most 36 characters. No other key of any tenant has it.
    pub id: KeyId,
    /// The user who asked for the key, if the engine knows.
    pub user_id: Option<String>,
    /// What people call the key, at most 100 characters.
    pub name: String,
    /// The first characters of the secret, by which people tell keys apart: at most 12.
    pub key_prefix: String,
    /// What is stored of the secret, at most 128 characters. No other key has it.
    pub key_hash: KeyHash,
    /// What the key may do. The text is stored as it is.
    pub permissions_json: Option<String>,
    /// Which workers the key may run. The text is stored as it is.
    pub allowed_workers_json: Option<String>,
    /// The most requests a minute, if limited.
    pub rate_limit_rpm: Option<i32>,
    /// The most runs at a time, if limited.
    pub max_concurrent_runs: Option<i32>,
    /// The status to begin with.
    pub status: KeyStatus,
    /// When the key expires, if it ever does.
    pub expires_at: Option<DateTime<Utc>>,
    /// When the key was created, by the engine's clock.
    pub created_at: DateTime<Utc>,
    /// Whether a test scenario made the key: then customers do not see it.
    pub is_synthetic: bool,
    /// The scenario that made the key.
    pub synthetic_scenario_id: Option<String>,
}

impl NewKey {
    /// An active key that never expires, may do what its lack of restrictions allows, and is not synthetic.
    pub fn new(
        tenant_id: TenantId,
        id: KeyId,
        name: impl Into<String>,
        key_prefix: impl Into<String>,
        key_hash: KeyHash,
        created_at: DateTime<Utc>,
    ) -> Self {
        Self {
            tenant_id,
            id,
            user_id: None,
            name: name.into(),
            key_prefix: key_prefix.into(),
            key_hash,
            permissions_json: None,
            allowed_workers_json: None,
            rate_limit_rpm: None,
            max_concurrent_runs: None,
            status: KeyStatus::Active,
            expires_at: None,
            created_at,
            is_synthetic: false,
            synthetic_scenario_id: None,
        }
    }
}

impl KeysDriver<'_> {
    /// Inserts a key and returns it as it is stored.
    ///
    /// It is not frozen and was never used. Nothing is shortened to fit: a text that is too long for
    /// its column is [`Error::Query`].
    ///
    /// # Errors
    ///
    /// [`Error::KeyExists`] when a key has the id, [`Error::KeyHashExists`] when one has the hash,
    /// whichever tenant it belongs to. As after any error, the server takes no more statements of the
    /// transaction: to go on in it, insert inside a nested one.
    pub fn insert_key(&mut self, key: &NewKey) -> Result<KeySnapshot> {
        diesel::insert_into(api_keys::table)
            .values((
                api_keys::tenant_id.eq(&key.tenant_id),
                api_keys::id.eq(&key.id),
                api_keys::user_id.eq(&key.user_id),
                api_keys::name.eq(&key.name),
                api_keys::key_prefix.eq(&key.key_prefix),
                api_keys::key_hash.eq(&key.key_hash),
                api_keys::permissions_json.eq(&key.permissions_json),
                api_keys::allowed_workers_json.eq(&key.allowed_workers_json),
                api_keys::rate_limit_rpm.eq(key.rate_limit_rpm),
                api_keys::max_concurrent_runs.eq(key.max_concurrent_runs),
                api_keys::status.eq(key.status.as_str()),
                api_keys::expires_at.eq(key.expires_at.map(Time::from)),
                api_keys::created_at.eq(Time::from(key.created_at)),
                api_keys::is_synthetic.eq(key.is_synthetic),
                api_keys::synthetic_scenario_id.eq(&key.synthetic_scenario_id),
            ))
            .returning(KeySnapshot::as_returning())
            .change_one(self.conn)
            .map_err(|error| name_taken(error, &key.id))
    }
}

pub(super) fn name_taken(error: Error, id: &KeyId) -> Error {
    match error {
        Error::UniqueViolation { constraint, .. } if is_constraint(&constraint, "api_keys_pkey") => {
            Error::KeyExists(id.clone())
        }
        Error::UniqueViolation { constraint, .. } if is_constraint(&constraint, "uq_api_keys_key_hash") => {
            Error::KeyHashExists
        }
        error => error,
    }
}
