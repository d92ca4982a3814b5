//! Both drivers, the migrations and the promises, on a real server.

mod api_keys_facade_driver;
mod auth;
mod contention;
mod counts;
mod errors;
mod events;
mod events_migrations;
mod every_method;
mod expiry;
mod failover;
mod freeze;
mod hostile;
mod insert;
mod key;
mod key_plans;
mod list;
mod locked_key;
mod migrations;
mod oracle;
mod paging;
mod pgbouncer;
mod plans;
mod pool;
mod revocation;
mod row_level_security;
#[cfg(feature = "serde")]
mod serde;
mod soak;
mod statements;
mod support;
mod transaction;
mod try_lock;
mod unused;
mod usage;
mod uses;
mod values;
