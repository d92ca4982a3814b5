//! A real PostgreSQL server for a test, an example or a benchmark, gone afterwards.
//!
//! ```
//! use diesel::prelude::*;
//!
//! let database = throwaway_postgres::migrated()?;
//! let mut conn = database.connect()?;
//! diesel::sql_query("SELECT FROM api_keys").execute(&mut conn)?;
//! # Ok::<(), throwaway_postgres::BoxError>(())
//! ```
//!
//! The server is the one that `TEST_DATABASE_URL` names. Without it, one is started in memory from
//! the binaries that [`Server::shared`] finds or fetches; all processes of this user share it, and a
//! watchdog stops it and removes its folder when the last of them is gone, however it went.
//! A [`Database`] is dropped with its value; those of a killed process are dropped by the next one.

mod binaries;
mod database;
mod private;
mod server;

pub use binaries::programs;
pub use database::Database;
pub use private::PrivateServer;
pub use server::Server;

/// Any error; none is told apart, because nothing but a person reads them.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// What the functions here return.
pub type Result<T> = std::result::Result<T, BoxError>;

/// Creates a database of one's own with this crate's migrations applied.
pub fn migrated() -> Result<Database> {
    let database = empty()?;
    api_keys_driver::migrate(&mut database.connect()?)?;
    Ok(database)
}

/// Creates an empty database of one's own.
pub fn empty() -> Result<Database> {
    Server::shared()?.create_database()
}
