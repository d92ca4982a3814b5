//! Enums for texts in the database that engines match on: the status of a key, and the kind of an event. Texts that
//! people write, such as names and reasons, are plain strings and do not belong here.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::Text;

macro_rules! vocabulary {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$word_doc:meta])* $word:ident = $text:literal,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, AsExpression, FromSqlRow)]
        #[diesel(sql_type = Text)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "serde", serde(into = "String", from = "Cow<'_, str>"))]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$word_doc])* $word,)*
            /// A stored text that this version of the crate does not know.
            Other(String),
        }

        impl $name {
            /// Returns the stored text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$word => $text,)*
                    Self::Other(text) => text,
                }
            }
        }

        impl<'a> From<Cow<'a, str>> for $name {
            fn from(text: Cow<'a, str>) -> Self {
                match &*text {
                    $($text => Self::$word,)*
                    _ => Self::Other(text.into_owned()),
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Cow::Borrowed(text).into()
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Cow::<str>::Owned(text).into()
            }
        }

        impl From<$name> for String {
            fn from(word: $name) -> Self {
                match word {
                    $name::Other(text) => text,
                    known => known.as_str().into(),
                }
            }
        }

        impl FromStr for $name {
            type Err = Infallible;

            fn from_str(text: &str) -> Result<Self, Infallible> {
                Ok(text.into())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.as_str() == other.as_str()
            }
        }

        impl Eq for $name {}

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.as_str().cmp(other.as_str())
            }
        }

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.as_str().hash(state);
            }
        }

        impl ToSql<Text, Pg> for $name {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
                <str as ToSql<Text, Pg>>::to_sql(self.as_str(), out)
            }
        }

        impl FromSql<Text, Pg> for $name {
            fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
                Ok(std::str::from_utf8(value.as_bytes())?.into())
            }
        }
    };
}

vocabulary! {
    /// The stored status of a key. It does not say whether the key is frozen or past its expiry.
    ///
    /// Two statuses are equal if their texts are equal. The order is the order of the texts. In Diesel it is a `Text`
    /// value, in serde a string.
    ///
    /// ```
    /// use api_keys_driver::KeyStatus;
    ///
    /// assert_eq!(KeyStatus::from("revoked"), KeyStatus::Revoked);
    /// assert_eq!(KeyStatus::from("on hold").as_str(), "on hold");
    /// ```
    KeyStatus {
        /// `active`: the key is neither revoked nor marked as expired.
        Active = "active",
        /// `revoked`: the key was revoked and must not be used again.
        Revoked = "revoked",
        /// `expired`: a service marked the key as expired. A key past its `expires_at` may still be `active`.
        Expired = "expired",
    }
}

vocabulary! {
    /// The kind of an event: what happened to the key.
    ///
    /// Two kinds are equal if their texts are equal. The order is the order of the texts. In Diesel it is a `Text`
    /// value, in serde a string.
    KeyEventKind {
        /// `inserted`: the key was inserted.
        Inserted = "inserted",
        /// `frozen`: the key was frozen, or the time, the author or the reason of its freeze changed.
        Frozen = "frozen",
        /// `unfrozen`: the key was unfrozen.
        Unfrozen = "unfrozen",
        /// `revoked`: the key was revoked, or the time or the reason of its revocation changed.
        Revoked = "revoked",
        /// `expiry_set`: the key's expiry was set, moved or removed.
        ExpirySet = "expiry_set",
        /// `changed`: another value changed, such as the name, or the status to a value other than `revoked`.
        Changed = "changed",
        /// `deleted`: the key was deleted.
        Deleted = "deleted",
    }
}
