//! Both drivers, the migrations and the promises, on a real server.

mod api_keys_facade_driver;
mod contention;
mod errors;
mod events;
mod every_method;
mod hostile;
mod keys_driver;
mod life;
mod life_migrations;
mod life_plans;
mod migrations;
mod oracle;
mod paging;
mod pgbouncer;
mod plans;
mod pool;
#[cfg(feature = "serde")]
mod serde;
mod soak;
mod statements;
mod support;
mod transaction;
mod try_lock;
mod usage;
mod uses;
mod values;
