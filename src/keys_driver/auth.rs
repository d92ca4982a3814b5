//! What recognising a key takes, and what it may do.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;

use super::{KeyHash, KeysDriver};
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::MaybeTime;
use crate::{KeyId, KeyStatus, Result, TenantId};

/// What it takes to judge whether a key may be used, and for what.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
#[non_exhaustive]
pub struct KeyAuthSnapshot {
    /// The key's own id.
    pub id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// The user who asked for the key, if the engine said so.
    pub user_id: Option<String>,
    /// The status, as stored.
    pub status: KeyStatus,
    /// Whether the key is frozen, whatever its status.
    pub is_frozen: bool,
    /// When the key expires, if it ever does. Its status may still be `active` afterwards.
    #[diesel(deserialize_as = MaybeTime)]
    pub expires_at: Option<DateTime<Utc>>,
    /// When the key was revoked, if it was.
    #[diesel(deserialize_as = MaybeTime)]
    pub revoked_at: Option<DateTime<Utc>>,
    /// What the key may do, the stored text as it is: not parsed, and not always JSON.
    pub permissions_json: Option<String>,
    /// Which workers the key may run, the stored text as it is.
    pub allowed_workers_json: Option<String>,
    /// The most requests a minute, if limited.
    pub rate_limit_rpm: Option<i32>,
    /// The most runs at a time, if limited.
    pub max_concurrent_runs: Option<i32>,
    /// Whether a test scenario made the key.
    pub is_synthetic: bool,
    /// Counts the key's changes. A cache keeps the answer with the highest one.
    pub revision: i64,
}

impl KeysDriver<'_> {
    /// Fetches the key that has a hash, of whichever tenant; `None` when no key has it.
    ///
    /// Nothing is judged: a revoked, frozen or expired key is found like any other. The statement carries no
    /// tenant, because the tenant is what the look-up finds out.
    pub fn fetch_key_by_hash(&mut self, key_hash: &KeyHash) -> Result<Option<KeyAuthSnapshot>> {
        KeyAuthSnapshot::query().filter(api_keys::key_hash.eq(key_hash)).read_optional(self.conn)
    }

    /// Fetches of a key what [`fetch_key_by_hash`](Self::fetch_key_by_hash) answers; `None` for a missing key
    /// and for another tenant's.
    ///
    /// This is how an engine that has no secret at hand learns what a key may do: its permissions, its
    /// limits, and whose it is. Nothing is judged and nothing is locked.
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
