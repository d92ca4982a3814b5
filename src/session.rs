//! What the crate remembers of a connection as long as it lives: which one it is, how old, and whether it
//! must go.
//!
//! The notes stand in Diesel's cache of type names, under names that no type has. It is the only part of
//! a connection that moves with it and that Diesel never changes by itself, so the notes follow a
//! connection that is moved or swapped. They cost no round trip and leave nothing in the server's session.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
pub(crate) fn condemn(conn: &mut PgConnection) {
    note(conn, "condemned", 1);
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
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    let halves = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    conn.get_metadata_cache().store_type(key(what), halves);
}

fn key(what: &'static str) -> PgMetadataCacheKey<'static> {
    PgMetadataCacheKey::new(Some(Cow::Borrowed("api_keys_driver's notes")), Cow::Borrowed(what))
}
