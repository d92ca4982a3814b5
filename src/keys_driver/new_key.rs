//! Inserting a key. Many keys at once are in `new_keys.rs`.

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
    /// The user who asked for the key, if the engine knows: at most 36 characters.
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
    /// The most requests a minute, if limited. Not negative.
    pub rate_limit_rpm: Option<i32>,
    /// The most runs at a time, if limited. Not negative.
    pub max_concurrent_runs: Option<i32>,
    /// The status to begin with: at most 50 characters.
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

impl NewKey {
    /// Refuses what no row can hold, before anything is sent.
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
    /// Inserts a key and returns it as it is stored.
    ///
    /// It is not frozen and was never used. Nothing is shortened or rounded to fit; a time keeps its
    /// microseconds.
    ///
    /// # Errors
    ///
    /// Before anything is sent: [`Error::TooLong`] with the column for a text that has more characters than its
    /// column holds, spaces at its end included, [`Error::NulByte`], and [`Error::Negative`] for a limit below
    /// zero.
    ///
    /// From the server: [`Error::KeyExists`] when a key has the id and [`Error::KeyHashExists`] when one has the
    /// hash, whichever tenant it belongs to. On the database of the existing service, which refers to its
    /// tenants and users, also [`Error::UnknownTenant`] and [`Error::UnknownUser`].
    ///
    /// As after any error of the server, it takes no more statements of the transaction: to go on in it,
    /// insert inside a nested one.
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
