//! What an engine needs to recognise a key and to decide what it may do. Lists of keys are in `list.rs`.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;

use super::{KeyHash, KeysDriver};
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::MaybeTime;
use crate::{KeyId, KeyStatus, Result, TenantId};

/// A key with what an engine needs to decide whether it may be used, and for what.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
#[non_exhaustive]
pub struct KeyAuthSnapshot {
    /// The key's id.
    pub id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// The user who asked for the key, if the engine recorded one.
    pub user_id: Option<String>,
    /// The stored status.
    pub status: KeyStatus,
    /// Whether the key is frozen. This does not depend on its status.
    pub is_frozen: bool,
    /// When the key expires; `None` is never. The status may still be `active` after this time.
    #[diesel(deserialize_as = MaybeTime)]
    pub expires_at: Option<DateTime<Utc>>,
    /// When the key was revoked; `None` if it was not.
    #[diesel(deserialize_as = MaybeTime)]
    pub revoked_at: Option<DateTime<Utc>>,
    /// What the key may do. This is the stored text, which is not parsed and may not be JSON.
    pub permissions_json: Option<String>,
    /// Which workers the key may run. This is the stored text, which is not parsed and may not be JSON.
    pub allowed_workers_json: Option<String>,
    /// The most requests per minute; `None` is no limit.
    pub rate_limit_rpm: Option<i32>,
    /// The most runs at the same time; `None` is no limit.
    pub max_concurrent_runs: Option<i32>,
    /// Whether a test scenario made the key.
    pub is_synthetic: bool,
    /// A number that grows with each change of the key. A cache keeps the snapshot with the highest revision.
    pub revision: i64,
}

impl KeysDriver<'_> {
    /// Fetches the key with this hash. Returns `None` if no key of any tenant has it.
    ///
    /// The method does not decide whether the key is valid: it also finds revoked, frozen and expired keys.
    /// The statement carries no tenant, because the caller learns the tenant from the answer. Nothing is locked.
    pub fn fetch_key_by_hash(&mut self, key_hash: &KeyHash) -> Result<Option<KeyAuthSnapshot>> {
        KeyAuthSnapshot::query().filter(api_keys::key_hash.eq(key_hash)).read_optional(self.conn)
    }

    /// Fetches the same columns as [`fetch_key_by_hash`](Self::fetch_key_by_hash), by id. Returns `None` if the
    /// tenant has no such key.
    ///
    /// Use it in an engine that does not have the secret and needs the key's permissions, limits or user. The
    /// method does not decide whether the key is valid, and it locks nothing.
    pub fn fetch_key_auth_by_id(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<KeyAuthSnapshot>> {
        KeyAuthSnapshot::query()
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .read_optional(self.conn)
    }
}
