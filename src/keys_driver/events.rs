//! What was done to keys: a key's history, and the changes of all keys for followers.

use chrono::{DateTime, Utc};
use diesel::expression::FallibleCastsTo;
use diesel::pg::Pg;
use diesel::pg::sql_types::Record;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use super::{EventPosition, KeysDriver};
use crate::schema::api_key_events;
use crate::send::RunStatement;
use crate::time::{MaybeTime, Time};
use crate::{KeyEventKind, KeyId, KeyStatus, Page, Result, TenantId};

/// One change of a key, and what it left.
#[derive(Clone, Debug, PartialEq, Eq, HasQuery)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_key_events, check_for_backend(Pg))]
#[non_exhaustive]
pub struct KeyEventSnapshot {
    /// The event's place in the order of [`KeysDriver::fetch_key_events_after`].
    #[diesel(embed)]
    pub position: EventPosition,
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// The key that was changed.
    pub key_id: KeyId,
    /// The key's revision after the change: the higher, the newer. Events of one `UPDATE` share it.
    pub revision: i64,
    /// What was done.
    pub kind: KeyEventKind,
    /// When, as given with the change: `created_at`, `frozen_at` or `revoked_at`. Where no time is
    /// given, as for every other change, when the transaction began, by the server's clock.
    #[diesel(deserialize_as = Time)]
    pub at: DateTime<Utc>,
    /// Who did it, where that was given: a freeze's `frozen_by`.
    pub actor: Option<String>,
    /// Why, where that was given: the reason of a freeze or of a revocation.
    pub reason: Option<String>,
    /// The status that the change left.
    pub status: KeyStatus,
    /// Whether the change left the key frozen.
    pub is_frozen: bool,
    /// The expiry that the change left.
    #[diesel(deserialize_as = MaybeTime)]
    pub expires_at: Option<DateTime<Utc>>,
}

/// PostgreSQL's transaction id, which Diesel does not know.
#[derive(diesel::sql_types::SqlType)]
#[diesel(postgres_type(name = "xid8", schema = "pg_catalog"))]
pub struct Xid8;

impl FallibleCastsTo<Text> for Xid8 {}

/// The transactions that are open at a moment.
#[derive(diesel::sql_types::SqlType)]
#[diesel(postgres_type(name = "pg_snapshot", schema = "pg_catalog"))]
pub struct PgSnapshot;

#[diesel::declare_sql_function]
extern "SQL" {
    fn pg_current_snapshot() -> PgSnapshot;
    fn pg_snapshot_xmin(snapshot: PgSnapshot) -> Xid8;
}

impl KeysDriver<'_> {
    /// Fetches a page of a key's history, oldest change first: by revision.
    ///
    /// Each change has its events, whoever made it: this driver, or somebody who writes the table
    /// beside it. They are part of the transaction that made the change, and are seen when it is. A
    /// change that leaves every column as it was, and a use, have none. History begins with the
    /// migration, and outlives the key. Nothing here deletes an event: to keep the table small, delete
    /// what every follower has passed.
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

    /// Fetches the next events of all tenants' keys after a position, for whoever follows all changes.
    ///
    /// Start from [`EventPosition::default`], go on from the last event's position, and no committed
    /// event is skipped or seen twice. A page shorter than `limit` is the end for now.
    ///
    /// The order is that of the writers' transaction ids, and a page ends before the oldest transaction
    /// that is still open, because that one may yet commit an event of its own. So a follower waits
    /// while a transaction that has written anything is open, in whichever database of the server, and
    /// never skips what it leaves; one that only reads is not waited for. Call this outside a
    /// transaction, or in one that has written nothing: it would wait for itself.
    ///
    /// Transaction ids do not rise with the changes of a key: a transaction that began early may change
    /// a key late. Therefore what a follower keeps is the event with the highest revision. This cache
    /// knows the frozen keys, from the events alone:
    ///
    /// ```
    /// # use std::collections::HashMap;
    /// # use api_keys_driver::{EventPosition, KeyHash, KeyId, KeysDriver, NewKey, Result, TenantId};
    /// # use diesel::{Connection, PgConnection};
    /// #[derive(Default)]
    /// struct FrozenKeys {
    ///     followed_to: EventPosition,
    ///     /// The highest revision that was seen of a key, and whether that left it frozen.
    ///     seen: HashMap<(TenantId, KeyId), (i64, bool)>,
    /// }
    ///
    /// impl FrozenKeys {
    ///     fn catch_up(&mut self, conn: &mut PgConnection) -> Result<()> {
    ///         loop {
    ///             let events = KeysDriver::new(conn).fetch_key_events_after(self.followed_to, 1000)?;
    ///             let Some(last) = events.last() else { return Ok(()) };
    ///             self.followed_to = last.position;
    ///             for event in events {
    ///                 let news = (event.revision, event.is_frozen);
    ///                 let seen = self.seen.entry((event.tenant_id, event.key_id)).or_insert(news);
    ///                 if event.revision > seen.0 {
    ///                     *seen = news;
    ///                 }
    ///             }
    ///         }
    ///     }
    ///
    ///     fn contains(&self, tenant_id: &TenantId, key_id: &KeyId) -> bool {
    ///         self.seen.get(&(tenant_id.clone(), key_id.clone())).is_some_and(|(_, is_frozen)| *is_frozen)
    ///     }
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # let (tenant_id, key_id) = (TenantId::from("tenant"), KeyId::from("key"));
    /// # let now = "2026-01-01T00:00:00Z".parse().unwrap();
    /// # let key = NewKey::new(tenant_id.clone(), key_id.clone(), "Production", "sk-live", KeyHash::from("hash"), now);
    /// # conn.transaction(|conn| {
    /// #     let mut keys = KeysDriver::new(conn);
    /// #     keys.insert_key(&key)?;
    /// #     let key = keys.fetch_key_for_update(&tenant_id, &key_id)?.unwrap();
    /// #     keys.update_key_frozen(key, now)
    /// # }).unwrap();
    /// # let mut frozen = FrozenKeys::default();
    /// # while !frozen.contains(&tenant_id, &key_id) {
    /// #     frozen.catch_up(&mut conn).unwrap(); // others' transactions on the same server may be open
    /// # }
    /// ```
    ///
    /// Keys that were frozen when the migration ran have an event that says so. A cache that also reads
    /// keys itself, by [`fetch_key_by_hash`](Self::fetch_key_by_hash) for one, compares revisions in
    /// the same way.
    ///
    /// Transaction ids belong to a server. After a dump was restored into another one (not after
    /// `pg_upgrade`, a base backup or a failover), run `UPDATE api_key_events SET transaction_id = 0`
    /// before the first write, and let followers start from the beginning. Of a sharded server, follow
    /// each shard by itself.
    pub fn fetch_key_events_after(
        &mut self,
        position: EventPosition,
        limit: u32,
    ) -> Result<Vec<KeyEventSnapshot>> {
        type Position = Record<(BigInt, BigInt)>;

        let place = (api_key_events::transaction_id, api_key_events::id).into_sql::<Position>();
        let oldest_open =
            pg_snapshot_xmin(pg_current_snapshot()).fallible_cast::<Text>().fallible_cast::<BigInt>();
        KeyEventSnapshot::query()
            .filter(place.gt((position.transaction_id, position.id)))
            .filter(api_key_events::transaction_id.lt(oldest_open))
            .order((api_key_events::transaction_id, api_key_events::id))
            .limit(limit.into())
            .read_all(self.conn)
    }
}
