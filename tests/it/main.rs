//! Both drivers, the migrations and the promises, on a real server.

mod api_keys_facade_driver;
mod every_method;
mod keys_driver;
mod migrations;
mod oracle;
#[cfg(feature = "serde")]
mod serde;
mod statements;
mod support;
