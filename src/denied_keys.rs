//! A cache of the keys that may not be used, which follows the events. The keys and the events are read in
//! `keys_driver`; waiting for changes is in `key_event_listener`.

use std::collections::{HashMap, VecDeque};

use diesel::PgConnection;

use crate::{
    Error, EventPosition, KeyEventKind, KeyEventSnapshot, KeyId, KeyStatus, KeysDriver, Result, TenantId,
};

/// A cache of the keys of all tenants that may not be used: keys that are frozen, keys whose status is not `active`,
/// and keys that were deleted since the cache was built. It is for engines that check a request without a query.
///
/// It starts with the keys in the table and then follows the events. So a start reads one index, which holds only these
/// keys. After [`catch_up`](Self::catch_up) it equals the table as of that call, also if changes were committed in
/// another order than they were made, if events were compacted, or if keys were deleted and inserted again.
///
/// It is in memory. Each process has its own, and builds it when it starts.
///
/// ```
/// use api_keys_driver::{DeniedKeys, KeyEventListener, Result};
/// use diesel::PgConnection;
/// use std::time::Duration;
///
/// fn follow(conn: &mut PgConnection, mut tell: impl FnMut(&DeniedKeys) -> bool) -> Result<()> {
///     // Listens before it reads, so that it misses no change.
///     let mut listener = KeyEventListener::new(conn)?;
///     let mut denied = DeniedKeys::seed(listener.connection())?;
///     loop {
///         denied.catch_up(listener.connection())?;
///         if !tell(&denied) {
///             return Ok(());
///         }
///         listener.wait(Duration::from_secs(1))?;
///     }
/// }
/// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
/// # follow(&mut database.connect().unwrap(), |denied| !denied.is_empty()).unwrap();
/// ```
///
/// It does not include expired keys, because it does not read the clock. The engine compares `expires_at` of the key's
/// snapshot with its own clock.
#[derive(Clone, Debug)]
pub struct DeniedKeys {
    followed_to: EventPosition,
    keys: HashMap<TenantId, HashMap<KeyId, KeyState>>,
    allowed_again: VecDeque<Allowed>,
}

/// A key that may be used again since a revision.
#[derive(Clone, Debug)]
struct Allowed {
    tenant_id: TenantId,
    key_id: KeyId,
    revision: i64,
    /// A transaction id. The events with a lower revision have lower ids.
    next: i64,
}

#[derive(Clone, Copy, Debug)]
struct KeyState {
    revision: i64,
    is_denied: bool,
}

/// The result of [`DeniedKeys::catch_up`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CaughtUp {
    /// The number of events that were applied.
    pub events: i64,
    /// The number of events that were skipped, because the id of their key or tenant is not UTF-8. No method of this
    /// crate finds such a key.
    pub unreadable: i64,
    /// Whether the cache was read from the table again, because the server is another one or failed over, or because a
    /// trigger was created again, or disabled and enabled.
    pub is_reseeded: bool,
}

/// How many keys or events are fetched at a time.
const BATCH: u32 = 1000;

impl DeniedKeys {
    /// Reads which keys may not be used. Call [`catch_up`](Self::catch_up) before the first lookup.
    ///
    /// Call it outside a transaction, as [`catch_up`](Self::catch_up). A key whose tenant or id is not UTF-8 is skipped.
    ///
    /// # Errors
    ///
    /// - [`Error::EventsNotRecorded`] if a trigger is missing or disabled, or if Citus distributes the tables.
    /// - [`Error::AlreadyInTransaction`] in a transaction that has written something, because it may be rolled back.
    pub fn seed(conn: &mut PgConnection) -> Result<Self> {
        let mut driver = KeysDriver::new(conn);
        // This is first, so that changes during the loop are followed.
        let followed_to = driver.fetch_head_to_seed()?;
        let mut denied = Self { followed_to, keys: HashMap::new(), allowed_again: VecDeque::new() };
        let committed = committed_after(&mut driver, followed_to)?;
        let mut last = None;
        loop {
            let page = driver.walk_denied_keys(last.as_ref(), BATCH)?;
            for key in page.keys {
                denied.update(&key.tenant_id, &key.id, KeyState { revision: key.revision, is_denied: true });
            }
            last = page.next;
            if last.is_none() {
                break;
            }
        }
        for allowed in committed {
            denied.allow(allowed);
        }
        Ok(denied)
    }

    /// Applies what was committed since the last call, up to the oldest transaction that is still open.
    ///
    /// If an older transaction that has written anything is still open on the server, the change is applied by a later
    /// call. This includes the caller's own transaction: in a test inside a transaction, call [`seed`](Self::seed) again
    /// instead. After an error, the cache keeps the events that were applied before it: call this again, on another
    /// connection if the error's advice says so.
    ///
    /// # Errors
    ///
    /// [`Error::EventsNotRecorded`] if a trigger is missing or disabled: the cache may be wrong, and the engine must
    /// decide whether to accept keys.
    pub fn catch_up(&mut self, conn: &mut PgConnection) -> Result<CaughtUp> {
        let mut met = CaughtUp::default();
        loop {
            let batch = match KeysDriver::new(conn).follow_key_events(self.followed_to, BATCH) {
                Err(Error::PositionElsewhere) => {
                    *self = Self::seed(conn)?;
                    met.is_reseeded = true;
                    continue;
                }
                batch => batch?,
            };
            let is_end = batch.events.is_empty() && batch.unreadable.is_none();
            for event in batch.events {
                met.events += 1;
                self.take(&event, batch.next);
            }
            if let Some(position) = batch.unreadable {
                met.unreadable += 1;
                self.followed_to = position;
            }
            if is_end {
                self.forget_allowed(batch.oldest_open);
                return Ok(met);
            }
        }
    }

    /// Returns whether the key may not be used. A key that the cache does not know may be.
    #[must_use]
    pub fn contains(&self, tenant_id: &TenantId, key_id: &KeyId) -> bool {
        self.keys.get(tenant_id).and_then(|keys| keys.get(key_id)).is_some_and(|known| known.is_denied)
    }

    /// Returns how many keys may not be used.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.values().flat_map(HashMap::values).filter(|known| known.is_denied).count()
    }

    /// Returns whether every key may be used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the position that was followed to, for
    /// [`compact_key_events`](KeysDriver::compact_key_events).
    #[must_use]
    pub fn followed_to(&self) -> EventPosition {
        self.followed_to
    }

    fn take(&mut self, event: &KeyEventSnapshot, next: i64) {
        self.followed_to = event.position;
        let is_denied =
            event.is_frozen || event.status != KeyStatus::Active || event.kind == KeyEventKind::Deleted;
        if is_denied {
            self.update(&event.tenant_id, &event.key_id, KeyState { revision: event.revision, is_denied });
        } else {
            self.allow(Allowed::of(event, next));
        }
    }

    fn allow(&mut self, allowed: Allowed) {
        let state = KeyState { revision: allowed.revision, is_denied: false };
        if self.update(&allowed.tenant_id, &allowed.key_id, state) {
            self.allowed_again.push_back(allowed);
        }
    }

    /// Returns whether the state is newer than the known one.
    fn update(&mut self, tenant_id: &TenantId, key_id: &KeyId, state: KeyState) -> bool {
        let Some(keys) = self.keys.get_mut(tenant_id) else {
            self.keys.insert(tenant_id.clone(), HashMap::from([(key_id.clone(), state)]));
            return true;
        };
        match keys.get_mut(key_id) {
            Some(known) if known.revision >= state.revision => false,
            Some(known) => {
                *known = state;
                true
            }
            None => {
                keys.insert(key_id.clone(), state);
                true
            }
        }
    }

    /// Removes keys that may be used again. Until then they are kept with their revision, so that an event with a lower
    /// revision is ignored. Such an event was committed before the one that was applied, so its transaction had begun
    /// by then. When all these transactions have ended and were followed, no such event can come.
    fn forget_allowed(&mut self, oldest_open: i64) {
        while self.allowed_again.front().is_some_and(|allowed| allowed.next <= oldest_open) {
            let Some(allowed) = self.allowed_again.pop_front() else { return };
            let Some(keys) = self.keys.get_mut(&allowed.tenant_id) else { continue };
            let is_newest = |known: &KeyState| !known.is_denied && known.revision == allowed.revision;
            if keys.get(&allowed.key_id).is_some_and(is_newest) {
                keys.remove(&allowed.key_id);
            }
            if keys.is_empty() {
                self.keys.remove(&allowed.tenant_id);
            }
        }
    }
}

impl Allowed {
    fn of(event: &KeyEventSnapshot, next: i64) -> Self {
        let (tenant_id, key_id) = (event.tenant_id.clone(), event.key_id.clone());
        Self { tenant_id, key_id, revision: event.revision, next }
    }
}

/// Returns the keys of the events that are committed although they are after the head, because an older transaction is
/// open. Their keys are read later than these events, so what is read includes them. A later change may be before the
/// head, and is then not followed: if a key is not denied when it is read, such an event must not deny it.
fn committed_after(driver: &mut KeysDriver<'_>, head: EventPosition) -> Result<Vec<Allowed>> {
    let (mut allowed, mut position) = (Vec::new(), head);
    loop {
        let batch = driver.fetch_committed_key_events(position, BATCH)?;
        let Some(last) = batch.unreadable.or(batch.events.last().map(|event| event.position)) else {
            return Ok(allowed);
        };
        allowed.extend(batch.events.iter().map(|event| Allowed::of(event, batch.next)));
        position = last;
    }
}
