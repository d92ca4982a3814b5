//! The progress that `migrate` reports, and the sessions that it waits for.

use std::fmt;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Integer, Nullable, Text, Timestamptz};

/// What [`Migrator`](crate::Migrator) reports while it works.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// A step begins.
    Step {
        /// The migration's name.
        name: String,
        /// The number of the step in this call, counted from 1.
        number: usize,
        /// The number of steps in this call.
        of: usize,
    },
    /// The step builds an index. Only an observer connection sees this.
    Builds {
        /// The migration's name.
        step: String,
        /// The phase, as `pg_stat_progress_create_index` names it.
        phase: String,
        /// The blocks or rows of this phase that are done.
        done: i64,
        /// The blocks or rows of this phase, 0 if the server does not say.
        total: i64,
    },
    /// The call waits for other sessions.
    Waits {
        /// The migration's name; `None` while another migrator works.
        step: Option<String>,
        /// The sessions that block it. Empty if the server does not name them.
        holders: Holders,
    },
}

/// A session of the server, or a prepared transaction, that blocks a migration.
///
/// For sessions of other roles, some fields are `None` unless the role that migrates is a member of
/// `pg_read_all_stats`.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
#[non_exhaustive]
pub struct Holder {
    /// Its process, for `pg_terminate_backend`. A prepared transaction has none: 0.
    #[diesel(sql_type = Integer)]
    pub pid: i32,
    /// Its role.
    #[diesel(sql_type = Nullable<Text>)]
    pub user: Option<String>,
    /// Its `application_name`.
    #[diesel(sql_type = Nullable<Text>)]
    pub application: Option<String>,
    /// Its state: `active`, `idle in transaction` and others.
    #[diesel(sql_type = Nullable<Text>)]
    pub state: Option<String>,
    /// When its transaction began, or its state if it has none.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub since: Option<DateTime<Utc>>,
    /// The name of a prepared transaction, for `ROLLBACK PREPARED`.
    #[diesel(sql_type = Nullable<Text>)]
    pub prepared: Option<String>,
}

impl Holder {
    pub(super) fn is_same_transaction(&self, other: &Self) -> bool {
        (self.pid, self.since, &self.prepared) == (other.pid, other.since, &other.prepared)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.prepared {
            Some(name) => write!(f, "prepared transaction {name}")?,
            None => write!(f, "pid {}", self.pid)?,
        }
        for (what, value) in [("user", &self.user), ("application", &self.application)] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                write!(f, ", {what} {value}")?;
            }
        }
        if let Some(state) = self.state.as_deref().filter(|state| !state.is_empty()) {
            write!(f, ", {state}")?;
        }
        match self.since {
            Some(since) => write!(f, " since {}", since.format("%F %T UTC")),
            None => Ok(()),
        }
    }
}

/// Sessions that block a migration, displayed as a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders(pub Vec<Holder>);

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("a session that the server does not name");
        }
        for (index, holder) in self.0.iter().enumerate() {
            write!(f, "{}{holder}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
