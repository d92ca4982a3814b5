//! Cursors: positions in lists of keys that a caller keeps between two pages, and their texts. Each order of a list has
//! its own cursor type, so that cursors of different lists cannot be mixed up. Pages by offset are in `page.rs`.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};

use crate::KeyId;
use crate::time::whole_micros;

/// A position in a list of keys that is ordered by `created_at DESC, id DESC`: directly after one key.
///
/// A cursor stays valid if its key is deleted. Lists with the same order can share it, such as the lists of the two
/// drivers. It does not hold the tenant: a method takes the tenant as a parameter.
///
/// Its `Display` text is opaque, and needs no escaping in a URL or a header. `FromStr` parses it. In serde it is a
/// string.
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

/// The text is not the `Display` text of a cursor of this type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the text is not a cursor of this list: pass the text of a cursor unchanged, or start without a cursor"
)]
pub struct ParseKeyCursorError;

impl KeyCursor {
    /// Makes the cursor directly after the key with this time and id.
    #[must_use]
    pub fn after(created_at: DateTime<Utc>, id: &KeyId) -> Self {
        Self { created_at: whole_micros(created_at), id: id.clone() }
    }
}

/// A position in the list of [`fetch_keys_expiring`](crate::KeysDriver::fetch_keys_expiring): directly after the key
/// that it was made from.
///
/// It holds the time and the id that the key had, so a later change of the key does not move it. Its text is opaque, as
/// that of a [`KeyCursor`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
pub struct ExpiryCursor {
    pub(crate) expires_at: DateTime<Utc>,
    pub(crate) id: KeyId,
}

/// A position in the list of [`fetch_keys_unused`](crate::KeysDriver::fetch_keys_unused): directly after the key that
/// it was made from.
///
/// It holds the time and the id that the key had, so a later change of the key does not move it. Its text is opaque, as
/// that of a [`KeyCursor`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
pub struct UnusedCursor {
    pub(crate) used_at: DateTime<Utc>,
    pub(crate) id: KeyId,
}

/// Implements the text of a cursor: a letter for its type, 16 hexadecimal digits for the microseconds since 1970, and
/// two digits for each byte of the id.
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

/// Parses the digits. It also accepts texts that `Display` does not write, such as capital letters; the caller refuses
/// them.
fn parse(text: &str) -> Option<(DateTime<Utc>, KeyId)> {
    let (micros, id) = text.split_at_checked(16)?;
    let micros = i64::from_ne_bytes(u64::from_str_radix(micros, 16).ok()?.to_ne_bytes());
    let id =
        id.as_bytes().chunks(2).map(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
    let id = String::from_utf8(id.collect::<Option<_>>()?).ok()?;
    // PostgreSQL cannot store a NUL byte in a text, so no key has such an id.
    let id = (!id.contains('\0')).then_some(id)?;
    Some((DateTime::from_timestamp_micros(micros)?, id.into()))
}
