//! The history of one key. Following the changes of all tenants' keys is in the folder.

mod denied;
mod position;
mod stream;

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::pg::sql_types::Record;
use diesel::prelude::*;
use diesel::sql_types::BigInt;

pub use self::denied::DeniedKeySnapshot;
pub use self::position::EventPosition;
pub use self::stream::Compaction;

use super::KeysDriver;
use crate::schema::api_key_events;
use crate::send::RunStatement;
use crate::time::{MaybeTime, Time};
use crate::{KeyEventCursor, KeyEventKind, KeyId, KeyStatus, Page, Result, TenantId};

/// One change of a key, and the state after it.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_key_events, check_for_backend(Pg))]
#[non_exhaustive]
pub struct KeyEventSnapshot {
    /// The event's position in the order of [`KeysDriver::fetch_key_events_after`]. In the history of a key, the
    /// position does not identify the server.
    #[diesel(embed)]
    pub position: EventPosition,
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// The key that was changed.
    pub key_id: KeyId,
    /// The key's revision after the change. A newer change has a higher revision. The events of one `UPDATE` have the
    /// same revision.
    pub revision: i64,
    /// What was done.
    pub kind: KeyEventKind,
    /// The time that the change sets: `created_at`, `frozen_at` or `revoked_at`. For other changes, and without such a
    /// time, when the transaction began, by the server's clock.
    #[diesel(deserialize_as = Time)]
    pub at: DateTime<Utc>,
    /// When the transaction that made the change began, by the server's clock.
    #[diesel(deserialize_as = Time)]
    pub recorded_at: DateTime<Utc>,
    /// Who froze the key: `frozen_by`. `None` for other changes.
    pub actor: Option<String>,
    /// The reason of a freeze or of a revocation, if one was stored.
    pub reason: Option<String>,
    /// The status after the change.
    pub status: KeyStatus,
    /// Whether the key is frozen after the change.
    pub is_frozen: bool,
    /// The expiry after the change.
    #[diesel(deserialize_as = MaybeTime)]
    pub expires_at: Option<DateTime<Utc>>,
}

impl KeysDriver<'_> {
    /// Fetches a page of a key's history, oldest change first: by revision.
    ///
    /// Every change has events, also a change by another program. They become visible when the transaction of the
    /// change commits. A use has no event, and an update that changes nothing has none. The history begins with the
    /// migration and remains after the key is deleted. Events that [`compact_key_events`](Self::compact_key_events)
    /// deleted are not in it.
    pub fn fetch_key_events(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        page: Page,
    ) -> Result<Vec<KeyEventSnapshot>> {
        KeyEventSnapshot::query()
            .filter(api_key_events::tenant_id.eq(tenant_id))
            .filter(api_key_events::key_id.eq(key_id))
            .order((api_key_events::revision, api_key_events::id))
            .limit(page.limit.into())
            .offset(page.offset.into())
            .read_all(self.conn)
    }

    /// Fetches the history of a key after one of its events, or from the beginning, in the order of
    /// [`fetch_key_events`](Self::fetch_key_events).
    ///
    /// Unlike an offset, a cursor costs the same at any depth. A loop over the pages returns each event exactly once,
    /// also while the key changes. It misses events that are compacted in the meantime.
    ///
    /// ```
    /// # use api_keys_driver::{KeyEventCursor, KeyEventKind, KeyId, KeysDriver, Result, TenantId};
    /// # use diesel::PgConnection;
    /// fn kinds(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Result<Vec<KeyEventKind>> {
    ///     let mut kinds = Vec::new();
    ///     let mut cursor: Option<KeyEventCursor> = None;
    ///     loop {
    ///         let events =
    ///             KeysDriver::new(conn).fetch_key_history_after(tenant_id, key_id, cursor.as_ref(), 100)?;
    ///         kinds.extend(events.iter().map(|event| event.kind.clone()));
    ///         let Some(last) = events.last() else { return Ok(kinds) };
    ///         cursor = Some(KeyEventCursor::from(last));
    ///     }
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # assert!(kinds(&mut database.connect().unwrap(), &"tenant".into(), &"key".into()).unwrap().is_empty());
    /// ```
    pub fn fetch_key_history_after(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        cursor: Option<&KeyEventCursor>,
        limit: u32,
    ) -> Result<Vec<KeyEventSnapshot>> {
        type Place = Record<(BigInt, BigInt)>;

        // No event has these numbers: a revision begins at 0.
        let (revision, id) = cursor.map_or((-1, i64::MIN), |cursor| (cursor.revision, cursor.id));
        let place = (api_key_events::revision, api_key_events::id).into_sql::<Place>();
        KeyEventSnapshot::query()
            .filter(api_key_events::tenant_id.eq(tenant_id))
            .filter(api_key_events::key_id.eq(key_id))
            .filter(place.gt((revision, id)))
            .order((api_key_events::revision, api_key_events::id))
            .limit(limit.into())
            .read_all(self.conn)
    }
}

impl From<&KeyEventSnapshot> for KeyEventCursor {
    fn from(event: &KeyEventSnapshot) -> Self {
        Self { revision: event.revision, id: event.position.id }
    }
}
