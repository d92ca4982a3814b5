//! The data layer for API keys.

mod api_keys_facade_driver;
mod error;
mod ids;
mod keys_driver;
mod migrate;
mod page;
mod prepared;
#[allow(missing_docs, reason = "printed by Diesel")]
pub mod schema;

pub use bigdecimal::BigDecimal;

pub use api_keys_facade_driver::{ApiKeyDetailSnapshot, ApiKeySnapshot, ApiKeysFacadeDriver};
pub use error::{Error, Result};
pub use ids::{KeyId, TenantId};
pub use keys_driver::{
    KeySnapshot, KeyUsageSnapshot, KeysDriver, LockedKey, get_keys_driver, get_keys_read_driver,
    get_keys_write_driver,
};
pub use migrate::{MIGRATIONS, migrate};
pub use page::Page;
