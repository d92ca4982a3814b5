//! The data layer for API keys on PostgreSQL: blocking, through Diesel, with rows mapped into plain structs.
//!
//! Two drivers borrow a connection and ask it questions. [`KeysDriver`] is the engines': it lists,
//! counts, meters, recognises, locks and changes the keys of any tenant, from their first day to their
//! last. [`ApiKeysFacadeDriver`] is the customer's view: it only reads, and hides the keys that test
//! scenarios made. What they return are snapshots, which own what they hold and never hold a key's hash.
//!
//! A driver reads and writes; it decides nothing. The engine above owns the transaction, the clock
//! and the rules, and changes a key only with the proof that it holds the key's lock:
//!
//! ```
//! use api_keys_driver::{KeyId, KeySnapshot, KeysDriver, Result, TenantId};
//! use chrono::{DateTime, Utc};
//! use diesel::{Connection, PgConnection};
//!
//! /// Freezes a key that leaked, unless somebody was faster. `None`: there is no such key.
//! fn freeze_leaked_key(
//!     conn: &mut PgConnection,
//!     tenant_id: &TenantId,
//!     key_id: &KeyId,
//!     now: DateTime<Utc>,
//! ) -> Result<Option<KeySnapshot>> {
//!     conn.transaction(|conn| {
//!         let mut keys = KeysDriver::new(conn);
//!         let Some(key) = keys.fetch_key_for_update(tenant_id, key_id)? else { return Ok(None) };
//!         if key.is_frozen {
//!             return Ok(Some(key.into_snapshot()));
//!         }
//!         keys.update_key_frozen(key, now).map(Some)
//!     })
//! }
//! # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
//! # let mut conn = database.connect().unwrap();
//! # let frozen = freeze_leaked_key(&mut conn, &"tenant".into(), &"key".into(), DateTime::UNIX_EPOCH);
//! # assert_eq!(frozen.unwrap(), None);
//! ```
//!
//! [`migrate`] brings an empty database, or the one of the existing Python service, to the schema that
//! the drivers need. [`PoolConfig`] makes a pool whose connections hold no lock for ever,
//! [`Transaction`] a transaction whose `Ok` means committed, and [`Error::advice`](crate::Error::advice) says what to do
//! when something went wrong. An engine may use its own for each of these.
//!
//! # When not to use it
//!
//! It is for blocking code: in an async service each call would hold up a thread of the executor. It
//! knows PostgreSQL only. It neither makes nor hashes secrets, and says of no key whether it is valid.
//!
//! # Features
//!
//! - `serde`: `Serialize` and `Deserialize` on ids, pages, cursors and snapshots. Money is a string there, so
//!   that no reader rounds it.

mod api_keys_facade_driver;
mod change;
mod check;
mod cursor;
mod denied_keys;
mod error;
mod ids;
mod key_event_listener;
mod keys_driver;
mod listing;
mod migrate;
mod migrations;
mod page;
mod pool;
mod prepared;
mod require;
/// The tables, for an engine's own statements.
#[allow(missing_docs, reason = "printed by Diesel")]
pub mod schema;
mod send;
mod session;
mod time;
mod timeouts;
mod transaction;
mod unnest;
mod vocabulary;

pub use bigdecimal::BigDecimal;

pub use keys_driver::{
    Bucket, Compaction, DeniedKeySnapshot, EventPosition, Freeze, KeyAuthSnapshot, KeyChanges,
    KeyEventCursor, KeyEventSnapshot, KeyFreezeSnapshot, KeyHash, KeySnapshot, KeySuccessor,
    KeyUsageSnapshot, KeyUse, KeysDriver, LockedKey, LockedTenant, NewCall, NewKey, ParseEventPositionError,
    TryLock, UsageBucket, UsageDrift, UsageRecount, UsageRollUp, get_keys_driver, get_keys_read_driver,
    get_keys_write_driver,
};

pub use api_keys_facade_driver::{ApiKeyDetailSnapshot, ApiKeySnapshot, ApiKeysFacadeDriver};

pub use change::Change;
pub use check::{Effect, Obstacle, Report, check};
pub use cursor::{ExpiryCursor, KeyCursor, ParseKeyCursorError, UnusedCursor};
pub use denied_keys::{CaughtUp, DeniedKeys};
pub use error::{Advice, ConnectFailure, Error, Result};
pub use ids::{KeyId, TenantId};
pub use key_event_listener::{KeyEventListener, Wake};
pub use migrate::{Holder, Holders, MIGRATIONS, Migrator, Progress, migrate};
pub use page::Page;
pub use pool::{Pool, PoolConfig, PoolManager, StatementCache};
pub use timeouts::Timeouts;
pub use transaction::{Retry, Transaction, TransactionError};
pub use vocabulary::{KeyEventKind, KeyStatus};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/usage.md")]
struct Usage;

#[cfg(doctest)]
#[doc = include_str!("../docs/sharding.md")]
struct Sharding;
