//! The migrator's session: its settings, which are restored afterwards, and the lock between migrators.

use std::thread;
use std::time::{Duration, Instant};

use diesel::dsl::select;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};

use super::watch::Watch;
use crate::steps::{InitialSession, SETTINGS, is_english, quoted, retry_on_timeout};
use crate::{Error, Result};

/// The advisory lock that only one migrator of a database holds: `api_keys` in ASCII.
const MIGRATOR: i64 = i64::from_be_bytes(*b"api_keys");

const POLL: Duration = Duration::from_millis(20);
const LONGEST_POLL: Duration = Duration::from_millis(500);

#[diesel::declare_sql_function]
extern "SQL" {
    #[sql_name = "pg_catalog.pg_try_advisory_lock"]
    fn pg_try_advisory_lock(key: BigInt) -> Bool;
    #[sql_name = "pg_catalog.pg_advisory_unlock"]
    fn pg_advisory_unlock(key: BigInt) -> Bool;
    #[sql_name = "pg_catalog.set_config"]
    fn set_config(name: Text, value: Text, is_local: Bool) -> Text;
}

/// A connection with the settings of a migrator. Dropping it restores the former settings and releases the
/// lock.
pub(super) struct Session<'c> {
    pub(super) conn: &'c mut PgConnection,
    before: Vec<(&'static str, String)>,
    is_locked: bool,
    /// Whether the server's errors are in English. Lock timeouts are recognized by the English message.
    pub(super) is_english: bool,
}

impl<'c> Session<'c> {
    pub(super) fn begin(conn: &'c mut PgConnection, initial: &InitialSession) -> Result<Self> {
        let known = SETTINGS.iter().zip(&initial.settings);
        let known: Vec<_> = known.filter_map(|(set, before)| Some((set, before.clone()?))).collect();
        let mut session = Self { conn, before: Vec::new(), is_locked: false, is_english: true };
        for ((name, value), before) in known {
            session.before.push((name, before));
            retry_on_timeout(|| session.set(name, value))?;
        }
        session.before.push(("search_path", initial.search_path.clone()));
        if !is_english(&initial.messages) {
            // Superusers may set it, and roles with `GRANT SET ON PARAMETER lc_messages`.
            session.is_english = session.set("lc_messages", "C").is_ok();
            if session.is_english {
                session.before.push(("lc_messages", initial.messages.clone()));
            }
        }
        Ok(session)
    }

    fn set(&mut self, name: &str, value: &str) -> QueryResult<usize> {
        select(set_config(name, value, false)).execute(self.conn)
    }

    /// Makes every unqualified name refer to one schema.
    pub(super) fn pin_path(&mut self, schema: &str) -> Result<()> {
        self.set("search_path", &format!("{}, pg_temp", quoted(schema)))?;
        Ok(())
    }

    /// Waits until no other migrator works on the database.
    ///
    /// It polls. A session that waits inside `pg_advisory_lock` holds a snapshot, and the concurrent index build of the
    /// other migrator would wait for it.
    pub(super) fn lock(&mut self, watch: &mut Watch<'_, '_>) -> Result<()> {
        let deadline = watch.deadline();
        let mut pause = POLL;
        while !select(pg_try_advisory_lock(MIGRATOR)).get_result::<bool>(self.conn)? {
            let holders = super::watch::holders_of_lock(self.conn, MIGRATOR)?;
            watch.waits(None, &holders);
            if Instant::now() >= deadline {
                return Err(Error::MigrationWaits { step: "the lock between migrators".into(), holders });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_POLL);
        }
        self.is_locked = true;
        Ok(())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // These fail only on a broken connection, whose session has ended with its settings and its lock.
        if self.is_locked {
            let _ = select(pg_advisory_unlock(MIGRATOR)).execute(self.conn);
        }
        // In reverse order, so that `statement_timeout` is restored last and cannot end one of these statements.
        for (name, value) in std::mem::take(&mut self.before).into_iter().rev() {
            let _ = self.set(name, &value);
        }
    }
}
