//! The answers of the contenders: this crate returns its own structs, and its peers return plain structs. Both are
//! converted to plain structs and compared outside of the timed calls.

use std::fmt::{self, Debug};

use api_keys_driver::schema::api_keys;
use api_keys_driver::{KeySnapshot, KeyUsageSnapshot, UsageBucket};
use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::prelude::*;

/// A key: every field of a `KeySnapshot`.
#[derive(Debug, PartialEq, Queryable, Selectable)]
#[diesel(table_name = api_keys, check_for_backend(diesel::pg::Pg))]
pub struct Key {
    pub id: String,
    pub tenant_id: String,
    pub name: String,
    pub key_prefix: String,
    pub status: String,
    pub is_frozen: bool,
    pub frozen_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub last_used_at: Option<DateTime<Utc>>,
    pub expires_at: Option<DateTime<Utc>>,
    pub total_requests: i64,
    pub is_synthetic: bool,
    pub revision: i64,
}

/// Reads a key from a row of `postgres` or of sqlx. The columns except its ids start at `index`.
macro_rules! read_key {
    ($row:ident, $tenant_id:expr, $index:expr) => {
        $crate::answer::Key {
            id: $row.get(0),
            tenant_id: $tenant_id,
            name: $row.get($index),
            key_prefix: $row.get($index + 1),
            status: $row.get($index + 2),
            is_frozen: $row.get($index + 3),
            frozen_at: $row.get($index + 4),
            created_at: $row.get($index + 5),
            last_used_at: $row.get($index + 6),
            expires_at: $row.get($index + 7),
            total_requests: $row.get($index + 8),
            is_synthetic: $row.get($index + 9),
            revision: $row.get($index + 10),
        }
    };
}
pub(crate) use read_key;

/// The usage: every field of a `KeyUsageSnapshot`.
pub struct Usage {
    pub request_count: i64,
    pub spend_cents: BigDecimal,
    pub is_rounded: bool,
}

/// Without trailing zeros, whose number differs between sums.
impl fmt::Debug for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request_count, spend_cents, is_rounded } = self;
        f.debug_tuple("Usage")
            .field(request_count)
            .field(&spend_cents.normalized())
            .field(is_rounded)
            .finish()
    }
}

/// An answer of this crate, or that of a peer.
pub enum Answer<Ours: Plain> {
    Ours(Ours),
    Peer(Ours::Plain),
}

impl<Ours: Plain> Answer<Ours> {
    /// The answer as text, the same for every contender.
    pub fn told(self) -> String {
        let plain = match self {
            Self::Ours(ours) => ours.plain(),
            Self::Peer(plain) => plain,
        };
        format!("{plain:?}")
    }
}

/// Converts a struct of this crate to a plain struct.
pub trait Plain {
    type Plain: Debug;

    fn plain(self) -> Self::Plain;
}

impl Plain for i64 {
    type Plain = Self;

    fn plain(self) -> Self {
        self
    }
}

impl Plain for KeySnapshot {
    type Plain = Key;

    fn plain(self) -> Key {
        Key {
            id: self.id.into(),
            tenant_id: self.tenant_id.into(),
            name: self.name,
            key_prefix: self.key_prefix,
            status: self.status.into(),
            is_frozen: self.is_frozen,
            frozen_at: self.frozen_at,
            created_at: self.created_at,
            last_used_at: self.last_used_at,
            expires_at: self.expires_at,
            total_requests: self.total_requests,
            is_synthetic: self.is_synthetic,
            revision: self.revision,
        }
    }
}

impl Plain for KeyUsageSnapshot {
    type Plain = Usage;

    fn plain(self) -> Usage {
        Usage {
            request_count: self.request_count,
            spend_cents: self.spend_cents,
            is_rounded: self.is_rounded,
        }
    }
}

impl Plain for UsageBucket {
    type Plain = (DateTime<Utc>, Usage);

    fn plain(self) -> Self::Plain {
        (self.start, self.usage.plain())
    }
}

impl<First: Plain, Second: Plain> Plain for (First, Second) {
    type Plain = (First::Plain, Second::Plain);

    fn plain(self) -> Self::Plain {
        (self.0.plain(), self.1.plain())
    }
}

impl<Ours: Plain> Plain for Option<Ours> {
    type Plain = Option<Ours::Plain>;

    fn plain(self) -> Self::Plain {
        self.map(Plain::plain)
    }
}

impl<Ours: Plain> Plain for Vec<Ours> {
    type Plain = Vec<Ours::Plain>;

    fn plain(self) -> Self::Plain {
        self.into_iter().map(Plain::plain).collect()
    }
}
