//! What the crate remembers of a connection as long as it lives: which one it is, how old, and whether it
//! must go.
//!
//! The notes stand in Diesel's cache of type names, under names that no type has. It is the only part of
//! a connection that moves with it and that Diesel never changes by itself, so the notes follow a
//! connection that is moved or swapped. They cost no round trip and leave nothing in the server's session.

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

        let id = noted(conn, "session").unwrap_or_else(|| {
            let id = NEXT.fetch_add(1, Ordering::Relaxed);
            note(conn, "session", id);
            id
        });
        Self(id)
    }
}

/// Notes that the connection is of no further use, although it may look healthy.
///
/// A pool of this crate's drops it by the note; any other r2d2 pool by the state of Diesel's transaction
/// manager, which is left alone within a transaction so that it can still be rolled back.
pub(crate) fn condemn(conn: &mut PgConnection) {
    note(conn, "condemned", 1);
    if !is_in_transaction(conn) {
        AnsiTransactionManager::transaction_manager_status_mut(conn).set_in_error();
    }
}

pub(crate) fn is_in_transaction(conn: &mut PgConnection) -> bool {
    let depth = AnsiTransactionManager::transaction_manager_status_mut(conn).transaction_depth();
    depth.is_ok_and(|depth| depth.is_some())
}

pub(crate) fn is_condemned(conn: &mut PgConnection) -> bool {
    noted(conn, "condemned").is_some()
}

/// Notes when the connection was opened, in time since a moment that its pool knows.
pub(crate) fn note_birth(conn: &mut PgConnection, birth: Duration) {
    note(conn, "birth", u64::try_from(birth.as_millis()).unwrap_or(u64::MAX));
}

pub(crate) fn birth(conn: &mut PgConnection) -> Option<Duration> {
    noted(conn, "birth").map(Duration::from_millis)
}

fn noted(conn: &mut PgConnection, what: &'static str) -> Option<u64> {
    let note = conn.get_metadata_cache().lookup_type(&key(what))?;
    Some((u64::from(note.oid().ok()?) << 32) | u64::from(note.array_oid().ok()?))
}

fn note(conn: &mut PgConnection, what: &'static str, number: u64) {
    let bytes = number.to_be_bytes();
    let half = |half: &[u8]| half.iter().fold(0, |half, byte| (half << 8) | u32::from(*byte));
    let halves = (half(&bytes[..4]), half(&bytes[4..]));
    conn.get_metadata_cache().store_type(key(what), halves);
}

fn key(what: &'static str) -> PgMetadataCacheKey<'static> {
    PgMetadataCacheKey::new(Some(Cow::Borrowed("api_keys_driver's notes")), Cow::Borrowed(what))
}

#[cfg(test)]
mod tests {
    use diesel::prelude::*;

    use super::{condemn, is_condemned, note, noted};

    #[test]
    fn a_note_is_read_as_it_was_written_and_stays_with_its_connection() {
        let database = throwaway_postgres::empty().unwrap();
        let mut conn = database.connect().unwrap();
        for number in [0, 1, u64::from(u32::MAX), u64::from(u32::MAX) + 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            note(&mut conn, "number", number);
            assert_eq!(noted(&mut conn, "number"), Some(number));
        }
        let mut other: PgConnection = database.connect().unwrap();
        condemn(&mut other);
        std::mem::swap(&mut conn, &mut other);
        assert_eq!((is_condemned(&mut conn), is_condemned(&mut other)), (true, false));
        assert_eq!(noted(&mut other, "number"), Some(u64::MAX));
    }
}
