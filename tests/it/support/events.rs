//! The events of a key in tests.

use api_keys_driver::{KeyEventSnapshot, KeysDriver, Page};
use diesel::prelude::*;

use super::{key, tenant};

/// The events of the tenant's key, oldest first.
pub(crate) fn history(conn: &mut PgConnection, id: &str) -> Vec<KeyEventSnapshot> {
    KeysDriver::new(conn).fetch_key_events(&tenant(), &key(id), Page::default()).unwrap()
}

/// The revision and the kind of each event of the tenant's key, oldest first.
pub(crate) fn kinds(conn: &mut PgConnection, id: &str) -> Vec<(i64, String)> {
    history(conn, id).into_iter().map(|event| (event.revision, event.kind.into())).collect()
}

/// Revisions and kinds, to compare with [`kinds`].
pub(crate) fn named(kinds: &[(i64, &str)]) -> Vec<(i64, String)> {
    kinds.iter().map(|(revision, kind)| (*revision, (*kind).into())).collect()
}
