//! How `migrate` waits for other sessions, and how it reports them.

use std::borrow::Cow;
use std::fmt;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Oid, Text};

use super::progress::{Holder, Holders, Progress};
use crate::{Error, Result};

/// The time between two observations.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(200);
/// The first pause between two attempts to get a lock. Sessions that queued behind the attempt continue during the
/// pause.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Transactions that are shorter than this are assumed to end soon.
const SHORT_TRANSACTION: Duration = Duration::from_secs(1);

pub(super) type Report<'r> = Box<dyn FnMut(&Progress) + 'r>;

/// How long one call waits, and to whom it reports.
pub(super) struct Watch<'m, 'r> {
    pub(super) max_wait: Duration,
    pub(super) report: Option<&'m mut Report<'r>>,
    pub(super) observer: Option<&'m mut PgConnection>,
    /// The name of the current step.
    pub(super) step: String,
    /// Whether the server's errors are in English.
    pub(super) is_english: bool,
}

impl fmt::Debug for Watch<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("step", &self.step).finish_non_exhaustive()
    }
}

impl Watch<'_, '_> {
    pub(super) fn deadline(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.max_wait).unwrap_or(now + Duration::from_secs(3600 * 24 * 365))
    }

    pub(super) fn report(&mut self, progress: &Progress) {
        if let Some(report) = &mut self.report {
            report(progress);
        }
    }

    pub(super) fn waits(&mut self, step: Option<&str>, holders: &Holders) {
        self.report(&Progress::Waits { step: step.map(str::to_owned), holders: holders.clone() });
    }

    fn timed_out(&self, holders: Holders) -> Error {
        Error::MigrationWaits { step: self.step.clone(), holders }
    }

    /// SQL for [`Self::retry_on_lock_timeout`]. If it fails to get a lock, its error is in English, in which a lock
    /// timeout is recognized, even if the server's messages are not.
    pub(super) fn in_english<'s>(&self, sql: &'s str) -> Cow<'s, str> {
        if self.is_english {
            return sql.into();
        }
        format!(
            "DO $in_english$ BEGIN
                 EXECUTE $in_its_own${sql}$in_its_own$;
             EXCEPTION
                 WHEN lock_not_available THEN
                     RAISE lock_not_available USING MESSAGE = 'canceling statement due to lock timeout';
                 WHEN deadlock_detected THEN
                     RAISE deadlock_detected USING MESSAGE = 'deadlock detected';
             END $in_english$"
        )
        .into()
    }

    /// Runs work that bounds its own waiting for locks, and repeats it until `max_wait` is over.
    pub(super) fn retry_on_lock_timeout<T: Send>(
        &mut self,
        conn: &mut PgConnection,
        tables: &[u32],
        mut work: impl FnMut(&mut PgConnection) -> Result<T> + Send,
    ) -> Result<T> {
        let deadline = self.deadline();
        let mut pause = PAUSE;
        loop {
            match self.observed(conn, &mut work) {
                Err(Error::LockTimeout(_) | Error::Deadlock(_)) => {}
                done => return done,
            }
            let holders = holders_of_tables(conn, tables, Hold::Any)?;
            let step = self.step.clone();
            self.waits(Some(&step), &holders);
            if Instant::now() + pause >= deadline {
                return Err(self.timed_out(holders));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits for the transactions that an index build on the table would wait for, before it begins.
    ///
    /// It does not wait for transactions that begin later, because a busy server always has some.
    pub(super) fn wait_for_older_transactions(&mut self, conn: &mut PgConnection, table: u32) -> Result<()> {
        let deadline = self.deadline();
        let mut waited_for: Option<Holders> = None;
        loop {
            let mut holders =
                holders_of_tables(conn, &[table], Hold::Build { longer_than: SHORT_TRANSACTION })?;
            if let Some(before) = &waited_for {
                holders.0.retain(|now| before.0.iter().any(|then| then.is_same_transaction(now)));
            }
            if holders.0.is_empty() {
                return Ok(());
            }
            if waited_for.as_ref().is_none_or(|before| before.0.len() > holders.0.len()) {
                let step = self.step.clone();
                self.waits(Some(&step), &holders);
            }
            if Instant::now() >= deadline {
                return Err(self.timed_out(holders));
            }
            waited_for = Some(holders);
            thread::sleep(OBSERVE_INTERVAL);
        }
    }

    /// Waits for a moment while another session builds the index.
    pub(super) fn wait_for_other_build(
        &mut self,
        conn: &mut PgConnection,
        table: u32,
        deadline: Instant,
    ) -> Result<()> {
        let holders = holders_of_tables(conn, &[table], Hold::Any)?;
        let step = self.step.clone();
        self.waits(Some(&step), &holders);
        if Instant::now() >= deadline {
            return Err(self.timed_out(holders));
        }
        thread::sleep(OBSERVE_INTERVAL);
        Ok(())
    }

    /// Runs a statement that waits for others for at most `max_wait`.
    pub(super) fn run_with_long_lock_timeout(
        &mut self,
        conn: &mut PgConnection,
        table: u32,
        sql: &str,
    ) -> Result<()> {
        let max_wait = self.max_wait.as_millis().clamp(1, i32::MAX as u128);
        set_lock_timeout(conn, &format!("{max_wait}ms"))?;
        let started = Instant::now();
        let done = self.observed(conn, |conn| {
            diesel::sql_query(sql).execute(conn)?;
            Ok(())
        });
        let timeout = self.max_wait;
        let may_have_timed_out = !self.is_english && started.elapsed() >= timeout;
        set_lock_timeout(conn, "0")?;
        match done {
            Err(Error::LockTimeout(_)) => {
                let holders = Hold::Build { longer_than: SHORT_TRANSACTION };
                Err(self.timed_out(holders_of_tables(conn, &[table], holders)?))
            }
            // A lock timeout is recognized by its English message only. After one, the transaction that the statement
            // waited for is still open, and older than the timeout.
            Err(Error::Query(error)) if may_have_timed_out => {
                let holders = holders_of_tables(conn, &[table], Hold::Build { longer_than: timeout })?;
                Err(if holders.0.is_empty() { Error::Query(error) } else { self.timed_out(holders) })
            }
            done => done,
        }
    }

    /// Does the work on another thread while the observer, if there is one, reports its progress.
    fn observed<T: Send>(
        &mut self,
        conn: &mut PgConnection,
        work: impl FnOnce(&mut PgConnection) -> Result<T> + Send,
    ) -> Result<T> {
        let (Some(observer), Some(report)) = (&mut self.observer, &mut self.report) else {
            return work(conn);
        };
        let pid = backend_pid(conn)?;
        let step = &self.step;
        let (done, is_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let _done = done;
                work(conn)
            });
            while is_done.recv_timeout(OBSERVE_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                // If the observer cannot read the progress, nothing is reported.
                for progress in observe(observer, pid, step).unwrap_or_default() {
                    report(&progress);
                }
            }
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn set_lock_timeout(conn: &mut PgConnection, value: &str) -> Result<()> {
    diesel::sql_query("SELECT pg_catalog.set_config('lock_timeout', $1, false)")
        .bind::<Text, _>(value)
        .execute(conn)?;
    Ok(())
}

fn backend_pid(conn: &mut PgConnection) -> Result<i32> {
    #[derive(QueryableByName)]
    struct Backend {
        #[diesel(sql_type = Integer)]
        pid: i32,
    }
    let backend: Backend = diesel::sql_query("SELECT pg_catalog.pg_backend_pid() AS pid").get_result(conn)?;
    Ok(backend.pid)
}

#[derive(QueryableByName)]
struct Build {
    #[diesel(sql_type = Text)]
    phase: String,
    #[diesel(sql_type = BigInt)]
    done: i64,
    #[diesel(sql_type = BigInt)]
    total: i64,
}

fn observe(observer: &mut PgConnection, pid: i32, step: &str) -> Result<Vec<Progress>> {
    let mut seen = Vec::new();
    let build: Option<Build> = diesel::sql_query(include_str!("watch/build.sql"))
        .bind::<Integer, _>(pid)
        .get_result(observer)
        .optional()?;
    if let Some(Build { phase, done, total }) = build {
        seen.push(Progress::Builds { step: step.to_owned(), phase, done, total });
    }
    let holders: Vec<Holder> =
        diesel::sql_query(include_str!("watch/blocking.sql")).bind::<Integer, _>(pid).load(observer)?;
    if !holders.is_empty() {
        seen.push(Progress::Waits { step: Some(step.to_owned()), holders: Holders(holders) });
    }
    Ok(seen)
}

/// Which sessions block a migration.
#[derive(Clone, Copy)]
enum Hold {
    /// Sessions with any lock on the tables.
    Any,
    /// Sessions that an index build waits for, and whose transactions are older.
    Build { longer_than: Duration },
}

fn holders_of_tables(conn: &mut PgConnection, tables: &[u32], hold: Hold) -> Result<Holders> {
    let (of_a_build, age) = match hold {
        Hold::Any => (false, Duration::ZERO),
        Hold::Build { longer_than } => (true, longer_than),
    };
    let holders = diesel::sql_query(include_str!("watch/holders.sql"))
        .bind::<Array<Oid>, _>(tables)
        .bind::<Bool, _>(of_a_build)
        .bind::<BigInt, _>(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
        .load(conn)?;
    Ok(Holders(holders))
}

pub(super) fn holders_of_lock(conn: &mut PgConnection, key: i64) -> Result<Holders> {
    let holders = diesel::sql_query(include_str!("watch/lock.sql")).bind::<BigInt, _>(key).load(conn)?;
    Ok(Holders(holders))
}
