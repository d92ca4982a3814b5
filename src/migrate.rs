//! Brings a database to the schema of the crate. What a database has and lacks is found out in `check`.

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
use self::index::Table;
use self::session::Session;
use self::watch::{Report, Watch};
use crate::check::{Facts, Verdict, judge};
use crate::steps::{Outset, Records, STEPS, Step, records};
use crate::{Effect, Error, Obstacle, Result};

/// The crate's migrations, for tools that list them. To run them, call [`migrate`].
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// How long a migrator waits for others, unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(600);

/// Brings a database to the schema that this crate needs, and returns the names of the migrations
/// that this call applied, oldest first.
///
/// It works on an empty database and on the existing service's, with its rows and its writers, and on
/// one whose `proxy_calls` is partitioned. Many processes may call it at once: one migrates, the others
/// wait for it and find nothing to do. If nothing is to be done, the call returns at once, and needs no
/// rights but to read the catalog.
///
/// The process may be killed at any moment. The next call continues from there: it takes over what the
/// server has finished meanwhile, waits for a build that still runs, and removes what an interrupted
/// build left behind.
///
/// No strong lock is waited for longer than a second at a time, and indexes are built concurrently. The
/// time that the builds take grows with the tables, so the session's timeouts are lifted meanwhile, and
/// put back. [`Migrator`] reports progress and sets how long the call waits for other sessions.
///
/// The tables are those that the connection's `search_path` finds, and new objects are made in the
/// schema of `api_keys`. Call it on a connection that reaches the server directly: the lock between
/// migrators belongs to a session, which a transaction-mode bouncer does not keep.
///
/// # Errors
///
/// - [`Error::AlreadyInTransaction`] inside a transaction, before anything is sent.
/// - [`Error::UnsupportedServer`] before PostgreSQL 14.
/// - [`Error::NotReady`] when something is in the way that can be known beforehand, rows included: all of
///   it is named, and nothing was changed. [`check`](crate::check()) says so without trying.
/// - [`Error::MigrationWaits`] when another session held it up for ten minutes: call it again.
/// - [`Error::Migration`] when a step could not be done. The steps before it stand, the step itself left
///   nothing behind, and the next call goes on from there.
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

/// [`migrate`] with a report of its progress and a bound on its waiting.
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
///         Progress::Step { name, nth, of } => println!("{nth}/{of} {name}"),
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
    patience: Duration,
    report: Option<Report<'r>>,
    observer: Option<&'r mut PgConnection>,
}

impl fmt::Debug for Migrator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Migrator").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Default for Migrator<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'r> Migrator<'r> {
    /// Waits ten minutes at most for each session that is in the way, and reports nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { patience: PATIENCE, report: None, observer: None }
    }

    /// Sets the longest time that one step waits for other sessions: for their locks, for the
    /// transactions that an index build waits for, and for another migrator.
    ///
    /// The time that a build itself takes is not bounded.
    #[must_use]
    pub fn wait_at_most(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Calls the function with what happens, on the thread that migrates.
    #[must_use]
    pub fn report_to(mut self, report: impl FnMut(&Progress) + 'r) -> Self {
        self.report = Some(Box::new(report));
        self
    }

    /// Looks through a second connection to the same database five times a second, and reports how far
    /// an index build is and whom a running statement waits for. Without it only what is known between
    /// two statements is reported.
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
        run.look_again()?;
        // To read a view, or a column of another type, may run code of its owner with the rights of this role.
        if run.verdict.has_other_shapes() {
            run.refuse_obstacles(Vec::new())?;
        }
        let rows = run.look_at_rows(&run.verdict.pending.clone())?;
        run.refuse_obstacles(rows)?;
        records::set_up(run.session.conn)?;
        let pending = run.verdict.pending.clone();
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
        if recorded == Records::Hidden {
            return Err(StepFailed::because(
                "revert",
                "the role may not read __diesel_schema_migrations".into(),
            ));
        }
        let applied = STEPS.iter().rev().filter(|step| recorded.has(step)).collect();
        run.each(applied, Run::revert)
    }
}

/// One call at work.
struct Run<'m, 'r, 'c> {
    session: Session<'c>,
    outset: Outset,
    watch: Watch<'m, 'r>,
    schema: String,
    facts: Facts,
    verdict: Verdict,
}

impl<'m, 'r, 'c> Run<'m, 'r, 'c> {
    fn begin(migrator: &'m mut Migrator<'r>, conn: &'c mut PgConnection) -> Result<Self> {
        let outset = Outset::look(conn)?;
        let mut session = Session::begin(conn, &outset)?;
        let facts = Facts::gather(session.conn, &outset)?;
        let verdict = judge(&facts);
        let Some(home) = &facts.home else {
            return Err(Error::NotReady(Box::new(verdict.into_report(&facts))));
        };
        let schema = home.schema.clone();
        session.pin_path(&schema)?;
        let watch = Watch {
            patience: migrator.patience,
            report: migrator.report.as_mut(),
            observer: migrator.observer.as_deref_mut(),
            step: String::new(),
        };
        Ok(Self { session, outset, watch, schema, facts, verdict })
    }

    /// Another migrator may have done everything while this one waited for it.
    fn look_again(&mut self) -> Result<()> {
        self.facts = Facts::gather(self.session.conn, &self.outset)?;
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

    fn look_at_rows(&mut self, pending: &[&'static Step]) -> Result<Vec<Obstacle>> {
        let mut tables = Vec::new();
        for name in ["api_keys", "proxy_calls"] {
            tables.extend(Table::find(self.session.conn, &self.schema, name)?.map(|_| name));
        }
        rows::forbidden(self.session.conn, &self.schema, pending, &tables)
    }

    fn each(
        mut self,
        steps: Vec<&'static Step>,
        mut work: impl FnMut(&mut Self, &'static Step) -> Result<()>,
    ) -> Result<Vec<String>> {
        let of = steps.len();
        let mut names = Vec::with_capacity(of);
        for (nth, step) in (1..).zip(steps) {
            step.name.clone_into(&mut self.watch.step);
            self.watch.tell(&Progress::Step { name: step.name.into(), nth, of });
            if let Err(error) = work(&mut self, step) {
                if let Error::UniqueViolation { .. } = error {
                    // Rows that came after the look at them.
                    let rows = self.look_at_rows(&[step])?;
                    self.refuse_obstacles(rows)?;
                }
                return Err(StepFailed::at(step, error));
            }
            names.push(step.name.to_owned());
        }
        Ok(names)
    }

    fn apply(&mut self, step: &'static Step) -> Result<()> {
        if let Some(index) = step.index() {
            index::ensure(self.session.conn, &mut self.watch, &self.schema, &index)?;
            return records::add(self.session.conn, &self.schema, step);
        }
        if self.verdict.done.contains(&step) {
            return records::add(self.session.conn, &self.schema, step);
        }
        self.in_transaction(|conn, schema| {
            conn.batch_execute(step.up)?;
            records::add(conn, schema, step)
        })
    }

    fn revert(&mut self, step: &'static Step) -> Result<()> {
        if let Some(index) = step.index() {
            index::remove(self.session.conn, &mut self.watch, &self.schema, &index)?;
            return records::remove(self.session.conn, &self.schema, step);
        }
        self.in_transaction(|conn, schema| {
            conn.batch_execute(step.down)?;
            records::remove(conn, schema, step)
        })
    }

    fn in_transaction(&mut self, work: impl Fn(&mut PgConnection, &str) -> Result<()> + Sync) -> Result<()> {
        let schema = self.schema.clone();
        let conn = &mut *self.session.conn;
        let mut tables = Vec::new();
        for name in ["api_keys", "proxy_calls"] {
            tables.extend(Table::find(conn, &schema, name)?.map(|table| table.oid));
        }
        self.watch.with_short_locks(conn, &tables, |conn| conn.transaction(|conn| work(conn, &schema)))
    }
}
