//! The places in lists of keys that a caller keeps between two pages, and their texts. A list in another order has a
//! cursor of its own type, so that one is not taken for the other.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};

use crate::KeyId;
use crate::time::whole_micros;

/// A place in a tenant's list of keys: behind the key that it was made from.
///
/// It is a place and not a row: it stays good when its key is deleted, and two lists that are ordered
/// alike, such as those of both drivers, may share it. It names no tenant; the query does.
///
/// Over the wire it is opaque text that fits in a URL and a header as it is. In serde's terms it is a string.
///
/// ```
/// use api_keys_driver::{KeyCursor, KeyId, KeysDriver, Result, TenantId};
/// use diesel::PgConnection;
///
/// /// The ids of all keys of a tenant, a hundred at a time.
/// fn all_ids(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<Vec<KeyId>> {
///     let mut ids = Vec::new();
///     let mut cursor: Option<KeyCursor> = None;
///     loop {
///         let keys = KeysDriver::new(conn).fetch_keys_after(tenant_id, cursor.as_ref(), 100)?;
///         let Some(last) = keys.last() else { return Ok(ids) };
///         cursor = Some(KeyCursor::from(last));
///         ids.extend(keys.into_iter().map(|key| key.id));
///     }
/// }
/// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
/// # let mut conn = database.connect().unwrap();
/// # assert!(all_ids(&mut conn, &TenantId::from("nobody")).unwrap().is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
pub struct KeyCursor {
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) id: KeyId,
}

/// The text is not one that a cursor of this type was displayed as.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key cursor: pass back, unchanged, the text that one was displayed as, or start without one")]
pub struct ParseKeyCursorError;

impl KeyCursor {
    /// Makes the place behind a key, from what the list is ordered by.
    #[must_use]
    pub fn behind(created_at: DateTime<Utc>, id: &KeyId) -> Self {
        Self { created_at: whole_micros(created_at), id: id.clone() }
    }
}

/// A place in the list of [`fetch_keys_expiring`](crate::KeysDriver::fetch_keys_expiring): behind the key that it was
/// made from, as that key was then.
///
/// Like a [`KeyCursor`] it is a place and not a row, and in a URL or in serde's terms it is opaque text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
pub struct ExpiryCursor {
    pub(crate) expires_at: DateTime<Utc>,
    pub(crate) id: KeyId,
}

/// A place in the list of [`fetch_keys_unused`](crate::KeysDriver::fetch_keys_unused): behind the key that it was made
/// from, as that key was then.
///
/// Like a [`KeyCursor`] it is a place and not a row, and in a URL or in serde's terms it is opaque text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
pub struct UnusedCursor {
    pub(crate) used_at: DateTime<Utc>,
    pub(crate) id: KeyId,
}

/// Gives a cursor its text: a letter for the type, sixteen hexadecimal digits of microseconds since 1970, then two for
/// each byte of the id.
macro_rules! cursor_text {
    ($($Cursor:ident { $time:ident }, $letter:literal;)*) => {$(
        impl fmt::Display for $Cursor {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($letter)?;
                write!(f, "{:016x}", self.$time.timestamp_micros())?;
                self.id.as_str().bytes().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl FromStr for $Cursor {
            type Err = ParseKeyCursorError;

            fn from_str(text: &str) -> Result<Self, ParseKeyCursorError> {
                text.strip_prefix($letter)
                    .and_then(parse)
                    .map(|($time, id)| Self { $time, id })
                    .filter(|cursor| cursor.to_string() == text)
                    .ok_or(ParseKeyCursorError)
            }
        }

        #[cfg(feature = "serde")]
        impl From<$Cursor> for String {
            fn from(cursor: $Cursor) -> Self {
                cursor.to_string()
            }
        }

        #[cfg(feature = "serde")]
        impl TryFrom<String> for $Cursor {
            type Error = ParseKeyCursorError;

            fn try_from(text: String) -> Result<Self, ParseKeyCursorError> {
                text.parse()
            }
        }
    )*};
}

cursor_text! {
    KeyCursor { created_at }, "";
    ExpiryCursor { expires_at }, "e";
    UnusedCursor { used_at }, "u";
}

/// Reads a little more than is displayed, such as capital letters.
fn parse(text: &str) -> Option<(DateTime<Utc>, KeyId)> {
    let (micros, id) = text.split_at_checked(16)?;
    let micros = i64::from_ne_bytes(u64::from_str_radix(micros, 16).ok()?.to_ne_bytes());
    let id =
        id.as_bytes().chunks(2).map(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
    let id = String::from_utf8(id.collect::<Option<_>>()?).ok()?;
    // No key's id holds a NUL byte: PostgreSQL's text cannot.
    let id = (!id.contains('\0')).then_some(id)?;
    Some((DateTime::from_timestamp_micros(micros)?, id.into()))
}
