//! Values that the crate stores in a connection: its number, when it was opened, and whether it is broken.
//!
//! The values are entries in Diesel's cache of type names, under names that no type has. The cache moves with the
//! connection, and Diesel does not change these entries. So they stay correct if a connection is moved or swapped. They
//! cost no round trip and are not in the server's session.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::pg::{GetPgMetadataCache, PgMetadataCacheKey};
use diesel::prelude::*;

/// A number that no other connection of this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionId(u64);

impl SessionId {
    pub(crate) fn of(conn: &mut PgConnection) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);

        let id = stored(conn, "session").unwrap_or_else(|| {
            let id = NEXT.fetch_add(1, Ordering::Relaxed);
            store(conn, "session", id);
            id
        });
        Self(id)
    }
}

/// Marks the connection as broken, so that its pool drops it.
///
/// A pool of this crate reads the mark. Another r2d2 pool reads the state of Diesel's transaction manager. That state
/// does not change within a transaction, because the transaction must still be rolled back.
pub(crate) fn mark_broken(conn: &mut PgConnection) {
    store(conn, "broken", 1);
    if !is_in_transaction(conn) {
        AnsiTransactionManager::transaction_manager_status_mut(conn).set_in_error();
    }
}

pub(crate) fn is_in_transaction(conn: &mut PgConnection) -> bool {
    let depth = AnsiTransactionManager::transaction_manager_status_mut(conn).transaction_depth();
    depth.is_ok_and(|depth| depth.is_some())
}

pub(crate) fn is_marked_broken(conn: &mut PgConnection) -> bool {
    stored(conn, "broken").is_some()
}

/// Stores when the connection was opened, as the time since its pool was made.
pub(crate) fn set_opened_at(conn: &mut PgConnection, opened_at: Duration) {
    store(conn, "opened_at", u64::try_from(opened_at.as_millis()).unwrap_or(u64::MAX));
}

pub(crate) fn opened_at(conn: &mut PgConnection) -> Option<Duration> {
    stored(conn, "opened_at").map(Duration::from_millis)
}

fn stored(conn: &mut PgConnection, name: &'static str) -> Option<u64> {
    let entry = conn.get_metadata_cache().lookup_type(&cache_key(name))?;
    Some((u64::from(entry.oid().ok()?) << 32) | u64::from(entry.array_oid().ok()?))
}

/// The number is stored as two oids of 32 bits.
fn store(conn: &mut PgConnection, name: &'static str, number: u64) {
    let half = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default();
    conn.get_metadata_cache().store_type(cache_key(name), (half(number >> 32), half(number)));
}

fn cache_key(name: &'static str) -> PgMetadataCacheKey<'static> {
    PgMetadataCacheKey::new(Some(Cow::Borrowed("api_keys_driver's values")), Cow::Borrowed(name))
}

#[cfg(test)]
mod tests {
    use diesel::prelude::*;

    use super::{is_marked_broken, mark_broken, store, stored};

    #[test]
    fn a_stored_value_is_read_unchanged_and_moves_with_its_connection() {
        let database = throwaway_postgres::empty().unwrap();
        let mut conn = database.connect().unwrap();
        for number in [0, 1, u64::from(u32::MAX), u64::from(u32::MAX) + 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            store(&mut conn, "number", number);
            assert_eq!(stored(&mut conn, "number"), Some(number));
        }
        let mut other: PgConnection = database.connect().unwrap();
        mark_broken(&mut other);
        std::mem::swap(&mut conn, &mut other);
        assert_eq!((is_marked_broken(&mut conn), is_marked_broken(&mut other)), (true, false));
        assert_eq!(stored(&mut other, "number"), Some(u64::MAX));
    }
}
