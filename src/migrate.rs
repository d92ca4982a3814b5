//! Brings a database to the schema of the crate. `check` finds out what a database has and lacks.

mod failure;
mod index;
mod partitions;
mod progress;
mod rows;
mod session;
mod watch;

use std::fmt;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_migrations::{EmbeddedMigrations, embed_migrations};

pub use self::progress::{Holder, Holders, Progress};

use self::failure::StepFailed;
use self::index::{Builder, Table};
use self::session::Session;
use self::watch::{Report, Watch};
use crate::check::{Facts, Verdict, judge};
use crate::steps::{Index, InitialSession, Records, STEPS, Step, records};
use crate::{Effect, Error, Obstacle, Result};

/// The crate's migrations, for tools that list them. To run them, call [`migrate`].
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// How long a migrator waits for other sessions unless it is set.
const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(600);

/// Brings a database to the schema that this crate needs, and returns the names of the migrations
/// that this call applied, oldest first.
///
/// It works on an empty database and on the database of the existing service, while that service writes to it.
/// `proxy_calls` may be partitioned. Many processes may call it at once: one migrates, the others wait for it and find
/// nothing to do. If no migration is pending, the call returns at once, and needs no rights except to read the catalog.
///
/// The process may be killed at any moment. The next call continues: it takes over what the server has
/// finished, waits for an index build that still runs, and removes the invalid index that an interrupted
/// build leaves.
///
/// The call waits for a strong lock for one second at a time, and builds indexes concurrently. The time
/// of a build grows with the table, so the session's timeouts are lifted during the call and restored
/// after it. [`Migrator`] reports progress and sets how long the call waits for other sessions.
///
/// The tables are those that the connection's `search_path` finds. New objects are created in the schema
/// of `api_keys`. Call it on a connection that reaches the server directly: the lock between migrators
/// belongs to a session, which a transaction-mode bouncer does not keep.
///
/// # Errors
///
/// - [`Error::AlreadyInTransaction`] inside a transaction, before anything is sent.
/// - [`Error::UnsupportedServer`] before PostgreSQL 14.
/// - [`Error::NotReady`] if obstacles are known before the first step, in the schema or in the rows. It names
///   all of them, and nothing was changed. [`check`](crate::check()) reports those in the schema.
/// - [`Error::MigrationWaits`] if another session blocked a step for ten minutes: call it again.
/// - [`Error::Migration`] if a step failed. The steps before it are applied, the step itself changed nothing,
///   and the next call continues with it.
///
/// ```
/// # fn main() -> Result<(), throwaway_postgres::BoxError> {
/// # let database = throwaway_postgres::empty()?;
/// # let mut conn = database.connect()?;
/// let applied = api_keys_driver::migrate(&mut conn)?;
/// assert!(applied[0].ends_with("_create_api_keys"));
/// assert!(api_keys_driver::migrate(&mut conn)?.is_empty());
/// # Ok(())
/// # }
/// ```
pub fn migrate(conn: &mut PgConnection) -> Result<Vec<String>> {
    Migrator::new().migrate(conn)
}

/// Migrates as [`migrate`] does, reports its progress, and limits how long it waits.
///
/// ```
/// # fn main() -> Result<(), throwaway_postgres::BoxError> {
/// # let database = throwaway_postgres::empty()?;
/// # let mut conn = database.connect()?;
/// # let mut second_conn = database.connect()?;
/// use api_keys_driver::{Migrator, Progress};
/// use std::time::Duration;
///
/// let applied = Migrator::new()
///     .wait_at_most(Duration::from_secs(30))
///     .report_to(|progress| match progress {
///         Progress::Step { name, number, of } => println!("{number}/{of} {name}"),
///         Progress::Waits { holders, .. } => println!("waiting for {holders}"),
///         other => println!("{other:?}"),
///     })
///     .observe_through(&mut second_conn)
///     .migrate(&mut conn)?;
/// # assert!(!applied.is_empty());
/// # Ok(())
/// # }
/// ```
pub struct Migrator<'r> {
    max_wait: Duration,
    report: Option<Report<'r>>,
    observer: Option<&'r mut PgConnection>,
}

impl fmt::Debug for Migrator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Migrator").field("max_wait", &self.max_wait).finish_non_exhaustive()
    }
}

impl Default for Migrator<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'r> Migrator<'r> {
    /// Creates a migrator that waits at most ten minutes for other sessions in each step, and reports nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { max_wait: DEFAULT_MAX_WAIT, report: None, observer: None }
    }

    /// Sets how long one step waits for other sessions at most: for their locks, for the transactions that an index
    /// build waits for, and for another migrator.
    ///
    /// The time that an index build itself takes is not limited.
    #[must_use]
    pub fn wait_at_most(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// Calls the function with the progress, on the thread that migrates.
    #[must_use]
    pub fn report_to(mut self, report: impl FnMut(&Progress) + 'r) -> Self {
        self.report = Some(Box::new(report));
        self
    }

    /// Observes the migration five times a second through a second connection to the same database. It
    /// reports the progress of an index build, and the sessions that a running statement waits for. Without
    /// an observer, only what is known between two statements is reported.
    #[must_use]
    pub fn observe_through(mut self, observer: &'r mut PgConnection) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Migrates as [`migrate`] does.
    ///
    /// # Errors
    ///
    /// As [`migrate`].
    pub fn migrate(mut self, conn: &mut PgConnection) -> Result<Vec<String>> {
        let mut run = Run::begin(&mut self, conn)?;
        if run.verdict.pending.is_empty() {
            return Ok(Vec::new());
        }
        run.session.lock(&mut run.watch)?;
        run.refresh()?;
        // Reading a view, or a column of another type, could run code of its owner with the rights of this role.
        if run.verdict.has_wrong_tables() {
            run.refuse_obstacles(Vec::new())?;
        }
        let rows = match run.check_rows(&run.verdict.pending.clone()) {
            // The role may not read the rows, which is an obstacle.
            Err(Error::Query(error)) => {
                run.refuse_obstacles(Vec::new())?;
                return Err(Error::Query(error));
            }
            rows => rows?,
        };
        run.refuse_obstacles(rows)?;
        let pending = run.verdict.pending.clone();
        if let Some(first) = pending.first() {
            records::set_up(run.session.conn).map_err(|error| StepFailed::at(first, error))?;
        }
        run.each(pending, Run::apply)
    }

    /// Reverts the crate's migrations, newest first, and returns their names. Those of other
    /// applications in the same bookkeeping table stay. No row is dropped: a table with rows in it stays.
    ///
    /// # Errors
    ///
    /// As [`migrate`].
    pub fn revert(mut self, conn: &mut PgConnection) -> Result<Vec<String>> {
        let mut run = Run::begin(&mut self, conn)?;
        run.session.lock(&mut run.watch)?;
        let recorded = Records::read(run.session.conn, &run.schema)?;
        if recorded.are_hidden() {
            return Err(StepFailed::because(
                "revert",
                "the role may not read __diesel_schema_migrations".into(),
            ));
        }
        let applied = STEPS.iter().rev().filter(|step| recorded.has(step)).collect();
        run.each(applied, Run::revert)
    }
}

/// The state of one call.
struct Run<'m, 'r, 'c> {
    session: Session<'c>,
    initial: InitialSession,
    watch: Watch<'m, 'r>,
    schema: String,
    facts: Facts,
    verdict: Verdict,
}

impl<'m, 'r, 'c> Run<'m, 'r, 'c> {
    fn begin(migrator: &'m mut Migrator<'r>, conn: &'c mut PgConnection) -> Result<Self> {
        let initial = InitialSession::read(conn)?;
        let mut session = Session::begin(conn, &initial)?;
        let facts = Facts::gather(session.conn, &initial)?;
        let verdict = judge(&facts);
        let Some(home) = &facts.home else {
            return Err(Error::NotReady(Box::new(verdict.into_report(&facts))));
        };
        let schema = home.schema.clone();
        session.pin_path(&schema)?;
        let watch = Watch {
            max_wait: migrator.max_wait,
            report: migrator.report.as_mut(),
            observer: migrator.observer.as_deref_mut(),
            step: String::new(),
            is_english: session.is_english,
        };
        Ok(Self { session, initial, watch, schema, facts, verdict })
    }

    /// Reads the facts again: another migrator may have changed them while this one waited.
    fn refresh(&mut self) -> Result<()> {
        self.facts = Facts::gather(self.session.conn, &self.initial)?;
        self.verdict = judge(&self.facts);
        Ok(())
    }

    fn refuse_obstacles(&mut self, rows: Vec<Obstacle>) -> Result<()> {
        let mut verdict = std::mem::take(&mut self.verdict);
        verdict.obstacles.extend(rows);
        if verdict.obstacles.iter().any(|obstacle| obstacle.effect == Effect::BlocksMigration) {
            verdict.obstacles.retain(|obstacle| obstacle.effect == Effect::BlocksMigration);
            return Err(Error::NotReady(Box::new(verdict.into_report(&self.facts))));
        }
        self.verdict = verdict;
        Ok(())
    }

    fn check_rows(&mut self, pending: &[&'static Step]) -> Result<Vec<Obstacle>> {
        let mut tables = Vec::new();
        for name in ["api_keys", "proxy_calls"] {
            tables.extend(Table::find(self.session.conn, &self.schema, name)?.map(|_| name));
        }
        rows::violations(self.session.conn, &self.schema, pending, &tables)
    }

    fn each(
        mut self,
        steps: Vec<&'static Step>,
        mut work: impl FnMut(&mut Self, &'static Step) -> Result<()>,
    ) -> Result<Vec<String>> {
        let of = steps.len();
        let mut names = Vec::with_capacity(of);
        for (number, step) in (1..).zip(steps) {
            step.name.clone_into(&mut self.watch.step);
            self.watch.report(&Progress::Step { name: step.name.into(), number, of });
            if let Err(error) = work(&mut self, step) {
                if let Error::UniqueViolation { .. } = error {
                    // The rows were written after they were checked.
                    let rows = self.check_rows(&[step])?;
                    self.refuse_obstacles(rows)?;
                }
                return Err(StepFailed::at(step, error));
            }
            names.push(step.name.to_owned());
        }
        Ok(names)
    }

    fn builder<'a>(&'a mut self, index: &'a Index) -> Builder<'a, 'm, 'r> {
        Builder { conn: &mut *self.session.conn, watch: &mut self.watch, index }
    }

    fn apply(&mut self, step: &'static Step) -> Result<()> {
        let schema = self.schema.clone();
        if let Some(index) = step.index() {
            self.builder(&index).ensure(&schema)?;
            return records::add(self.session.conn, &self.schema, step);
        }
        if self.verdict.done.contains(&step) {
            return records::add(self.session.conn, &self.schema, step);
        }
        self.in_transaction(step.up, |conn| records::add(conn, &schema, step))
    }

    fn revert(&mut self, step: &'static Step) -> Result<()> {
        let schema = self.schema.clone();
        if let Some(index) = step.index() {
            self.builder(&index).remove(&schema)?;
            return records::remove(self.session.conn, &self.schema, step);
        }
        self.in_transaction(step.down, |conn| records::remove(conn, &schema, step))
    }

    /// Runs the SQL, and records it in the same transaction.
    fn in_transaction(
        &mut self,
        sql: &str,
        record: impl Fn(&mut PgConnection) -> Result<()> + Sync,
    ) -> Result<()> {
        let conn = &mut *self.session.conn;
        let mut tables = Vec::new();
        for name in ["api_keys", "proxy_calls"] {
            tables.extend(Table::find(conn, &self.schema, name)?.map(|table| table.oid));
        }
        let sql = self.watch.in_english(sql);
        self.watch.retry_on_lock_timeout(conn, &tables, |conn| {
            conn.transaction(|conn| {
                conn.batch_execute(&sql)?;
                record(conn)
            })
        })
    }
}
