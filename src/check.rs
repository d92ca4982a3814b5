//! Reports what keeps the crate from working on a database, and changes nothing. `facts` reads the catalog,
//! `expected` lists what the migrations create, and `judge` compares them.

mod column;
mod expected;
mod facts;
mod judge;
mod object;

use std::fmt;

use diesel::prelude::*;

pub(crate) use self::expected::Expected;
pub(crate) use self::facts::Facts;
pub(crate) use self::judge::{Verdict, judge};

use crate::steps::InitialSession;
use crate::{Error, Result};

/// What [`check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The server's version, as it names it.
    pub server_version: String,
    /// The schema of the tables, or the one in which `migrate` would create them.
    pub schema: Option<String>,
    /// The migrations that are applied, oldest first.
    pub applied: Vec<String>,
    /// The migrations that [`migrate`](crate::migrate()) would apply, oldest first.
    pub pending: Vec<String>,
    /// The obstacles, those that block first.
    pub obstacles: Vec<Obstacle>,
}

impl Report {
    /// Whether no migration is pending and there is no obstacle.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.pending.is_empty() && self.obstacles.is_empty()
    }
}

/// Shows one obstacle a line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, obstacle) in self.obstacles.iter().enumerate() {
            write!(f, "{}{obstacle}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// A reason why [`migrate`](crate::migrate()) or some methods do not work on a database as they should.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Obstacle {
    /// What it is about, such as `index ix_api_keys_tenant_newest_first`.
    pub name: String,
    /// What is wrong, and why it matters.
    pub why: String,
    /// The SQL or the action that removes it.
    pub action: String,
    /// What it prevents.
    pub effect: Effect,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}. {}", self.name, self.why, self.action)
    }
}

/// What an [`Obstacle`] prevents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Effect {
    /// [`migrate`](crate::migrate()) refuses to begin.
    BlocksMigration,
    /// Some methods fail or give wrong answers.
    BlocksMethods,
    /// Everything works, but slower or with less protection.
    Degrades,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlocksMigration => "blocks the migration",
            Self::BlocksMethods => "blocks methods",
            Self::Degrades => "degrades",
        })
    }
}

/// Looks at everything that can keep [`migrate`](crate::migrate()) or the drivers from working on this
/// database, and changes nothing.
///
/// It reads the catalog in one read-only transaction, and no row of a table. It needs no right except to
/// connect. The report is about the current role and search path: a worker calls it when it starts, with
/// the connection that it will use. A right that the role lacks is reported for each group of methods; a
/// worker that calls none of them does not need it. Directly after [`migrate`](crate::migrate()) the owner's
/// report is clean. `check` takes some milliseconds: see `docs/adoption.md`.
///
/// ```
/// # fn main() -> Result<(), throwaway_postgres::BoxError> {
/// # let database = throwaway_postgres::empty()?;
/// # let mut conn = database.connect()?;
/// use api_keys_driver::{check, migrate};
///
/// assert!(!check(&mut conn)?.pending.is_empty());
/// migrate(&mut conn)?;
/// let report = check(&mut conn)?;
/// assert!(report.is_clean(), "{report}");
///
/// diesel::connection::SimpleConnection::batch_execute(&mut conn, "DROP INDEX ix_api_keys_tenant_newest_first")?;
/// assert_eq!(check(&mut conn)?.obstacles[0].name, "index ix_api_keys_tenant_newest_first");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::AlreadyInTransaction`] inside a transaction.
pub fn check(conn: &mut PgConnection) -> Result<Report> {
    let initial = match InitialSession::read(conn) {
        Err(Error::UnsupportedServer { version, oldest }) => return Ok(unsupported(version, oldest)),
        looked => looked?,
    };
    let facts = Facts::gather(conn, &initial)?;
    Ok(judge(&facts).into_report(&facts))
}

fn unsupported(version: String, oldest: i32) -> Report {
    let obstacle = Obstacle {
        name: "server".into(),
        why: format!("it is PostgreSQL {version}, and the crate needs {oldest} or newer"),
        action: format!("upgrade the server to PostgreSQL {oldest} or newer"),
        effect: Effect::BlocksMigration,
    };
    Report { server_version: version, obstacles: vec![obstacle], ..Report::default() }
}
