//! A real PostgreSQL server for tests, examples and benchmarks. It starts in about a second and is removed
//! completely.
//!
//! ```
//! use diesel::prelude::*;
//!
//! fn migrate(conn: &mut PgConnection) -> QueryResult<usize> {
//!     diesel::sql_query("CREATE TABLE notes (id bigint PRIMARY KEY, text text NOT NULL)").execute(conn)
//! }
//!
//! let database = throwaway_postgres::empty()?.prepare(migrate)?;
//! let mut conn = database.connect()?;
//! let inserted = diesel::sql_query("INSERT INTO notes VALUES (1, 'hello')").execute(&mut conn)?;
//! assert_eq!(inserted, 1);
//! # Ok::<(), throwaway_postgres::BoxError>(())
//! ```
//!
//! - [`empty`] creates a [`Database`] on the server that all processes of this user share. The database
//!   is dropped with the value. If its process is killed, the next process drops it.
//! - [`PrivateServer`] is a server for one test, which may stop, crash or demote it.
//! - [`Pair`] is a primary and its standby, to fail over between.
//!
//! The shared server is the one that `TEST_DATABASE_URL` names. Without that variable, the first process
//! starts one in memory from the programs that [`programs`] finds. A watchdog process stops the server
//! and removes its folder when the last process that uses it has ended, even if that process was killed.

mod binaries;
mod database;
mod pair;
mod private;
mod server;

pub use binaries::programs;
pub use database::Database;
pub use pair::{Pair, Replication};
pub use private::PrivateServer;
pub use server::Server;

/// An error of any kind, to be read by a person. It has no variants.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A `Result` whose error is [`BoxError`].
pub type Result<T, E = BoxError> = std::result::Result<T, E>;

/// Creates an empty database on the shared server.
///
/// # Errors
///
/// As [`Server::shared`], or if the server refuses to create a database.
pub fn empty() -> Result<Database> {
    Server::shared()?.create_database()
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
