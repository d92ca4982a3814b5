//! The rotation of a key, as the documentation of `insert_key_successor` shows it.

use api_keys_driver::{KeySnapshot, KeyStatus, KeySuccessor, KeysDriver, Result};
use chrono::{DateTime, Utc};
use diesel::{Connection, PgConnection};

/// Replaces a key, which keeps working until the grace period ends. Returns `None` if the key must not be
/// rotated, or if it has changed since `seen` was read.
pub(crate) fn rotate(
    conn: &mut PgConnection,
    seen: &KeySnapshot,
    new: &KeySuccessor,
    grace_ends_at: DateTime<Utc>,
) -> Result<Option<KeySnapshot>> {
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let Some(old) = keys.fetch_key_for_update(&seen.tenant_id, &seen.id)? else { return Ok(None) };
        let expires_first = old.expires_at.is_some_and(|at| at <= grace_ends_at.max(new.created_at));
        if old.revision != seen.revision // it was changed after `seen` was read
            || old.status != KeyStatus::Active
            || old.is_frozen
            || expires_first
        {
            return Ok(None); // these are the engine's rules; the driver has none
        }
        let new = keys.insert_key_successor(&old, new)?;
        keys.update_key_expires_at(old, Some(grace_ends_at))?;
        Ok(Some(new))
    })
}
