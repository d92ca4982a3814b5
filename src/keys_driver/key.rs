use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;

use crate::schema::api_keys;
use crate::{KeyId, TenantId};

/// A key as an engine sees it: detached from the connection, and without its hash.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
pub struct KeySnapshot {
    /// The key's own id.
    pub id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// What people call the key.
    pub name: String,
    /// The first characters of the secret, by which people tell keys apart.
    pub key_prefix: String,
    /// The status as stored: `active`, `revoked` or `expired`.
    pub status: String,
    /// Whether the key is frozen, whatever its status.
    pub is_frozen: bool,
    /// When the key was frozen, if it is.
    pub frozen_at: Option<DateTime<Utc>>,
    /// When the key was created.
    pub created_at: DateTime<Utc>,
    /// When the key was last used, if it ever was.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When the key expires, if it ever does.
    pub expires_at: Option<DateTime<Utc>>,
    /// How often the key was used, as the service counted it.
    pub total_requests: i64,
}
