//! Inserting one key. Inserting a batch of keys is in `new_keys.rs`.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::result::Error::NotFound;

use super::refusal::{Candidate, refusal};
use super::{KeyHash, KeySnapshot, KeysDriver};
use crate::require;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{Error, KeyId, KeyStatus, Result, TenantId};

/// A key to insert. It has every column that an engine sets.
///
/// The engine makes the secret and passes only the secret's prefix and hash. [`NewKey::new`] takes the values that
/// every key has. Set the other fields as follows:
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
/// The hash has its own type, so that a swapped prefix and hash do not compile. Otherwise the hash could be stored in
/// the column of the prefix, which is shown to people:
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
    /// The tenant that the key belongs to, at most 36 characters.
    pub tenant_id: TenantId,
    /// The key's id, at most 36 characters. It must be unique among the keys of all tenants.
    pub id: KeyId,
    /// The user who asked for the key, at most 36 characters.
    pub user_id: Option<String>,
    /// The key's name, at most 100 characters. Several keys may have the same name.
    pub name: String,
    /// The first characters of the secret, at most 12. They help people to recognise the key.
    pub key_prefix: String,
    /// The hash of the secret, at most 128 characters. It must be unique among the keys of all tenants.
    pub key_hash: KeyHash,
    /// What the key may do. The text is stored without change and may have any length.
    pub permissions_json: Option<String>,
    /// Which workers the key may run. The text is stored without change and may have any length.
    pub allowed_workers_json: Option<String>,
    /// The most requests per minute, zero or more. `None` is no limit.
    pub rate_limit_rpm: Option<i32>,
    /// The most runs at the same time, zero or more. `None` is no limit.
    pub max_concurrent_runs: Option<i32>,
    /// The status of the new key, at most 50 characters.
    pub status: KeyStatus,
    /// When the key expires, in UTC. `None` is never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When the key was created, in UTC, by the engine's clock.
    pub created_at: DateTime<Utc>,
    /// Whether a test scenario makes the key. Customers do not see such a key.
    pub is_synthetic: bool,
    /// The id of the scenario that makes the key.
    pub synthetic_scenario_id: Option<String>,
}

impl NewKey {
    /// Makes an active key that never expires, has no limits and is not synthetic. It has no user and no texts for
    /// permissions and workers.
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

impl NewKey {
    /// Checks that each value fits its column.
    pub(super) fn require_storable(&self) -> Result<()> {
        require::fits("tenant_id", 36, self.tenant_id.as_str())?;
        require::fits("id", 36, self.id.as_str())?;
        require::fits_if_any("user_id", 36, self.user_id.as_deref())?;
        require::fits("name", 100, &self.name)?;
        require::fits("key_prefix", 12, &self.key_prefix)?;
        require::fits("key_hash", 128, self.key_hash.as_str())?;
        require::is_text_if_any("permissions_json", self.permissions_json.as_deref())?;
        require::is_text_if_any("allowed_workers_json", self.allowed_workers_json.as_deref())?;
        require::is_not_negative("rate_limit_rpm", self.rate_limit_rpm)?;
        require::is_not_negative("max_concurrent_runs", self.max_concurrent_runs)?;
        require::fits("status", 50, self.status.as_str())?;
        require::is_text_if_any("synthetic_scenario_id", self.synthetic_scenario_id.as_deref())
    }

    pub(super) fn candidate(&self) -> Candidate<'_> {
        Candidate {
            tenant_id: &self.tenant_id,
            id: &self.id,
            user_id: self.user_id.as_deref(),
            key_hash: &self.key_hash,
        }
    }
}

impl KeysDriver<'_> {
    /// Inserts a key, and returns the stored key.
    ///
    /// The new key is not frozen and has no uses. No text is shortened to fit. Times are stored in whole
    /// microseconds; finer digits are cut off. No other key is locked.
    ///
    /// In a database with the encoding `SQL_ASCII`, PostgreSQL counts bytes instead of characters. There it may refuse a
    /// longer text with [`Error::Query`], or cut off spaces at its end.
    ///
    /// # Errors
    ///
    /// Before anything is sent: [`Error::TooLong`] for a text with more characters than its column holds, where
    /// spaces at the end count; [`Error::NulByte`]; and [`Error::Negative`] for a limit below zero.
    ///
    /// From the server: [`Error::KeyExists`] if a key of any tenant has the id, and [`Error::KeyHashExists`] if a key
    /// of any tenant has the hash. The database of the existing service has foreign keys to its tenants and users, so
    /// there [`Error::UnknownTenant`] and [`Error::UnknownUser`] are also possible.
    ///
    /// After an error from the server, the transaction accepts no further statements. To continue in it, insert the
    /// key inside a nested transaction.
    pub fn insert_key(&mut self, key: &NewKey) -> Result<KeySnapshot> {
        key.require_storable()?;
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
            .insert(self.conn, |error| refusal(error, &[key.candidate()]))?
            .pop()
            .ok_or(Error::Query(NotFound))
    }
}
