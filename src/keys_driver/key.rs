//! The key as engines see it. The snapshot for recognising a key is in `auth.rs`.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;

use crate::schema::api_keys;
use crate::time::{MaybeTime, Time, whole_micros};
use crate::{ExpiryCursor, KeyCursor, KeyId, KeyStatus, TenantId, UnusedCursor};

/// A key as an engine sees it. It owns its values, is detached from the connection, and does not hold the hash.
///
/// Times are in UTC.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
#[non_exhaustive]
pub struct KeySnapshot {
    /// The key's id.
    pub id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// The key's name. Several keys may have the same name.
    pub name: String,
    /// The first characters of the secret, which help people to recognise the key.
    pub key_prefix: String,
    /// The stored status.
    pub status: KeyStatus,
    /// Whether the key is frozen. This does not depend on its status.
    pub is_frozen: bool,
    /// When the key was frozen; `None` if it is not.
    #[diesel(deserialize_as = MaybeTime)]
    pub frozen_at: Option<DateTime<Utc>>,
    /// When the key was created.
    #[diesel(deserialize_as = Time)]
    pub created_at: DateTime<Utc>,
    /// When the key was last used; `None` is never.
    #[diesel(deserialize_as = MaybeTime)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// When the key expires; `None` is never. The status may still be `active` after this time.
    #[diesel(deserialize_as = MaybeTime)]
    pub expires_at: Option<DateTime<Utc>>,
    /// The number of recorded uses of the key.
    pub total_requests: i64,
    /// Whether a test scenario made the key. Customers do not see such a key.
    pub is_synthetic: bool,
    /// A number that grows with each change of the key; a recorded use is not a change. Of two snapshots of a key,
    /// the one with the higher revision is newer.
    pub revision: i64,
}

impl From<&KeySnapshot> for KeyCursor {
    fn from(key: &KeySnapshot) -> Self {
        Self::after(key.created_at, &key.id)
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
