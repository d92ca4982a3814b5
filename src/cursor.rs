//! Cursors: positions in lists that a caller keeps between two pages, and their texts. Each order of a list has its own
//! cursor type, so that cursors of different lists cannot be mixed up. Pages by offset are in `page.rs`.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};

use crate::time::whole_micros;
use crate::{Error, KeyId, Result};

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

/// A position in a key's history ([`fetch_key_history_after`](crate::KeysDriver::fetch_key_history_after)): directly after
/// the event that it was made from.
///
/// It stays valid if the event is deleted. It does not hold the tenant or the key. Its text is opaque, as that of a
/// [`KeyCursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
pub struct KeyEventCursor {
    pub(crate) revision: i64,
    pub(crate) id: i64,
}

/// A letter, and 16 hexadecimal digits for each number.
impl fmt::Display for KeyEventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{:016x}{:016x}", self.revision, self.id)
    }
}

impl FromStr for KeyEventCursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.strip_prefix('h')
            .and_then(|digits| digits.split_at_checked(16))
            .and_then(|(revision, id)| {
                Some(Self { revision: parse_number(revision)?, id: parse_number(id)? })
            })
            .filter(|cursor| cursor.to_string() == text)
            .ok_or(Error::KeyCursor)
    }
}

/// Implements the text of a cursor of keys: a letter for its type, 16 hexadecimal digits for the microseconds since 1970,
/// and two digits for each byte of the id.
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
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                text.strip_prefix($letter)
                    .and_then(parse)
                    .map(|($time, id)| Self { $time, id })
                    .filter(|cursor| cursor.to_string() == text)
                    .ok_or(Error::KeyCursor)
            }
        }
    )*};
}

cursor_text! {
    KeyCursor { created_at }, "";
    ExpiryCursor { expires_at }, "e";
    UnusedCursor { used_at }, "u";
}

/// In serde, a cursor is its text.
macro_rules! cursor_in_serde {
    ($($Cursor:ident),*) => {$(
        #[cfg(feature = "serde")]
        impl From<$Cursor> for String {
            fn from(cursor: $Cursor) -> Self {
                cursor.to_string()
            }
        }

        #[cfg(feature = "serde")]
        impl TryFrom<String> for $Cursor {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }
    )*};
}

cursor_in_serde!(KeyCursor, ExpiryCursor, UnusedCursor, KeyEventCursor);

/// Parses hexadecimal digits, with or without a sign; the caller refuses what `Display` does not write.
fn parse_number(digits: &str) -> Option<i64> {
    Some(i64::from_ne_bytes(u64::from_str_radix(digits, 16).ok()?.to_ne_bytes()))
}

/// Parses the digits of a cursor of keys. It also accepts texts that `Display` does not write, such as capital letters;
/// the caller refuses them.
fn parse(text: &str) -> Option<(DateTime<Utc>, KeyId)> {
    let (micros, id) = text.split_at_checked(16)?;
    let id =
        id.as_bytes().chunks(2).map(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
    let id = String::from_utf8(id.collect::<Option<_>>()?).ok()?;
    // PostgreSQL cannot store a NUL byte in a text, so no key has such an id.
    let id = (!id.contains('\0')).then_some(id)?;
    Some((DateTime::from_timestamp_micros(parse_number(micros)?)?, id.into()))
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::str::FromStr;

    use proptest::prelude::*;

    use super::*;
    use crate::EventPosition;

    fn reads_back<T: FromStr + fmt::Display + fmt::Debug + PartialEq>(kept: &T) {
        assert_eq!(kept.to_string().parse().ok().as_ref(), Some(kept), "{kept}");
    }

    fn is_text_of<T: FromStr + fmt::Display>(text: &str) -> bool {
        text.parse::<T>().is_ok_and(|parsed| {
            assert_eq!(parsed.to_string(), text);
            true
        })
    }

    /// Of how many types it is a text.
    fn meanings(text: &str) -> usize {
        [
            is_text_of::<KeyCursor>(text),
            is_text_of::<ExpiryCursor>(text),
            is_text_of::<UnusedCursor>(text),
            is_text_of::<KeyEventCursor>(text),
            is_text_of::<EventPosition>(text),
        ]
        .into_iter()
        .filter(|is_text| *is_text)
        .count()
    }

    proptest! {
        #[test]
        fn a_place_reads_back_from_its_text_as_itself_and_as_nothing_else(
            (one, two, three) in any::<(i64, i64, i64)>(),
            seconds in -200_000_000_000_i64..200_000_000_000,
            id in "[^\0]{0,20}",
        ) {
            let time = DateTime::from_timestamp(seconds, 999_999_000).unwrap();
            let (key, event) = (KeyCursor::after(time, &id.as_str().into()), KeyEventCursor { revision: one, id: two });
            let expiry = ExpiryCursor { expires_at: time, id: key.id.clone() };
            let unused = UnusedCursor { used_at: time, id: key.id.clone() };
            let position = EventPosition { epoch: one & i64::MAX, transaction_id: two, id: three };
            reads_back(&key);
            reads_back(&expiry);
            reads_back(&unused);
            reads_back(&event);
            reads_back(&position);
            for text in [key.to_string(), expiry.to_string(), unused.to_string(), event.to_string(), position.to_string()] {
                prop_assert_eq!(meanings(&text), 1, "{}", text);
            }
        }

        #[test]
        fn any_text_is_refused_or_written_in_that_form(
            text in any::<String>(),
            near in "[euh]?[+-]?[0-9a-fA-F. é]{14,34}",
        ) {
            meanings(&text);
            meanings(&near);
        }
    }
}
