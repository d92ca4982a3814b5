//! A data layer for API keys on PostgreSQL: a blocking crate on Diesel that returns plain structs.
//!
//! Two drivers borrow a connection and send statements. [`KeysDriver`] is for engines: it finds, lists, counts,
//! locks and changes keys, and reads their usage and their events. [`ApiKeysFacadeDriver`] is the customer's view: it
//! is read-only, and hides synthetic keys, which test scenarios made. The drivers return snapshots: structs that own
//! their values, are detached from the connection, and never hold the hash of a key.
//!
//! A driver makes no decisions. The engine, which is the code that calls the driver, owns the transaction, the clock and
//! the rules. To change a key, the engine must hold the lock of its row:
//!
//! ```
//! use api_keys_driver::{KeyId, KeySnapshot, KeysDriver, Result, TenantId};
//! use chrono::{DateTime, Utc};
//! use diesel::{Connection, PgConnection};
//!
//! /// Freezes a key that leaked, unless it is already frozen. Returns `None` if the tenant has no such key.
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
//! [`migrate`] creates the schema in an empty database, or brings the database of the existing Python service to it.
//! Three parts are optional, and an engine can use its own instead. [`PoolConfig`] makes a connection pool with timeouts.
//! [`Transaction`] runs a transaction again if the server advises it, and its `Ok` means committed.
//! [`Error::advice`](crate::Error::advice) says what to do about an error.
//!
//! # When not to use it
//!
//! The crate is for blocking code: in an async service, each method would block a thread of the executor. It supports
//! only PostgreSQL. It does not make or hash secrets, and it does not decide whether a key is valid.
//!
//! # Features
//!
//! - `serde`: `Serialize` and `Deserialize` on ids, pages, cursors and snapshots, and `Deserialize` on [`PoolConfig`].
//!   Amounts of money are strings, so that no reader rounds them.

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
mod page;
mod pool;
mod prepared;
mod require;
/// Diesel's definitions of the tables, for an engine's own statements.
#[allow(missing_docs, reason = "printed by Diesel")]
pub mod schema;
mod send;
mod session;
mod steps;
mod time;
mod timeouts;
mod transaction;
mod unnest;
mod vocabulary;

pub use bigdecimal::BigDecimal;

pub use keys_driver::{
    Bucket, Compaction, DeniedKeySnapshot, EventPosition, Freeze, KeyAuthSnapshot, KeyChanges,
    KeyEventSnapshot, KeyFreezeSnapshot, KeyHash, KeySnapshot, KeySuccessor, KeyUsageSnapshot, KeyUse,
    KeysDriver, LockedKey, LockedTenant, NewCall, NewKey, TryLock, UsageBucket, UsageDrift, UsageRecount,
    UsageRollUp, get_keys_driver, get_keys_read_driver, get_keys_write_driver,
};

pub use api_keys_facade_driver::{ApiKeyDetailSnapshot, ApiKeySnapshot, ApiKeysFacadeDriver};

pub use change::Change;
pub use check::{Effect, Obstacle, Report, check};
pub use cursor::{ExpiryCursor, KeyCursor, KeyEventCursor, UnusedCursor};
pub use denied_keys::{CaughtUp, DeniedKeys};
pub use error::{Advice, ConnectFailure, Error, Result};
pub use ids::{KeyId, TenantId};
pub use key_event_listener::{KeyEventListener, Wake};
pub use migrate::{Holder, Holders, MIGRATIONS, Migrator, Progress, migrate};
pub use page::Page;
pub use pool::{Pool, PoolConfig, PoolManager, PooledConnection, StatementCache};
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
