//! The key as engines see it. What recognising a key takes is in `auth.rs`.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;

use crate::schema::api_keys;
use crate::time::{MaybeTime, Time, whole_micros};
use crate::{ExpiryCursor, KeyCursor, KeyId, KeyStatus, TenantId, UnusedCursor};

/// A key as an engine sees it: detached from the connection, and without its hash.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
#[non_exhaustive]
pub struct KeySnapshot {
    /// The key's own id.
    pub id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// What people call the key.
    pub name: String,
    /// The first characters of the secret, by which people tell keys apart.
    pub key_prefix: String,
    /// The status, as stored.
    pub status: KeyStatus,
    /// Whether the key is frozen, whatever its status.
    pub is_frozen: bool,
    /// When the key was frozen, if it is.
    #[diesel(deserialize_as = MaybeTime)]
    pub frozen_at: Option<DateTime<Utc>>,
    /// When the key was created.
    #[diesel(deserialize_as = Time)]
    pub created_at: DateTime<Utc>,
    /// When the key was last used, if it ever was.
    #[diesel(deserialize_as = MaybeTime)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// When the key expires, if it ever does. Its status may still be active afterwards.
    #[diesel(deserialize_as = MaybeTime)]
    pub expires_at: Option<DateTime<Utc>>,
    /// How often the key was used, as the service counted it.
    pub total_requests: i64,
    /// Whether a test scenario made the key: then customers do not see it.
    pub is_synthetic: bool,
    /// Counts the key's changes, uses excepted. Of two snapshots of a key the one with the higher
    /// revision is newer.
    pub revision: i64,
}

impl From<&KeySnapshot> for KeyCursor {
    fn from(key: &KeySnapshot) -> Self {
        Self::behind(key.created_at, &key.id)
    }
}

impl From<&KeySnapshot> for ExpiryCursor {
    fn from(key: &KeySnapshot) -> Self {
        let expires_at = key.expires_at.unwrap_or(DateTime::<Utc>::MAX_UTC);
        Self { expires_at: whole_micros(expires_at), id: key.id.clone() }
    }
}

impl From<&KeySnapshot> for UnusedCursor {
    fn from(key: &KeySnapshot) -> Self {
        let used_at = key.last_used_at.unwrap_or(key.created_at);
        Self { used_at: whole_micros(used_at), id: key.id.clone() }
    }
}
