//! The state of a session before the migrator changes it, and the settings that the migrator will change.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::{Array, Integer, Nullable, Text, Timestamptz};

use crate::{Error, Result};

/// The oldest supported major version of the server.
const OLDEST_MAJOR: i32 = 14;

/// The settings that a migrator changes and restores. A setting that the server does not know is skipped.
pub(crate) const SETTINGS: &[(&str, &str)] = &[
    // Building an index may take any time. Each step limits its own waits for locks.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("transaction_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("default_transaction_isolation", "read committed"),
    // With `off`, the server reports an error if a policy would hide rows.
    ("row_security", "off"),
    // The migrations contain definitions in this form.
    ("quote_all_identifiers", "off"),
    // The statements of a migrator contain backslashes that stand for themselves.
    ("standard_conforming_strings", "on"),
];

/// The state of the session before any setting is changed.
#[derive(QueryableByName)]
pub(crate) struct InitialSession {
    #[diesel(sql_type = Integer)]
    pub(crate) version_number: i32,
    #[diesel(sql_type = Text)]
    pub(crate) version: String,
    /// The schemas of the search path that exist and may be used, without those of the server and of temporary tables.
    #[diesel(sql_type = Array<Text>)]
    pub(crate) path: Vec<String>,
    #[diesel(sql_type = Text)]
    pub(crate) search_path: String,
    /// The language of the server's messages: `lc_messages`.
    #[diesel(sql_type = Text)]
    pub(crate) messages: String,
    #[diesel(sql_type = Timestamptz)]
    transaction_began: DateTime<Utc>,
    #[diesel(sql_type = Array<Nullable<Text>>)]
    pub(crate) settings: Vec<Option<String>>,
}

impl InitialSession {
    /// Reads the state of the session. It must send the first statement.
    ///
    /// It detects a transaction that was begun by SQL by its start time: two statements that are not in one transaction
    /// never have the same start time.
    pub(crate) fn read(conn: &mut PgConnection) -> Result<Self> {
        if AnsiTransactionManager::transaction_manager_status_mut(conn)
            .transaction_depth()
            .ok()
            .flatten()
            .is_some()
        {
            return Err(Error::AlreadyInTransaction);
        }
        let first = Self::query(conn)?;
        if first.version_number / 10_000 < OLDEST_MAJOR {
            return Err(Error::UnsupportedServer { version: first.version, oldest: OLDEST_MAJOR });
        }
        let second = Self::query(conn)?;
        if first.transaction_began == second.transaction_began {
            return Err(Error::AlreadyInTransaction);
        }
        Ok(second)
    }

    fn query(conn: &mut PgConnection) -> Result<Self> {
        let names: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).collect();
        retry_on_timeout(|| {
            diesel::sql_query(include_str!("initial_session.sql"))
                .bind::<Array<Text>, _>(&names)
                .get_result(conn)
        })
    }
}

/// Sends a statement again as long as the `statement_timeout` of the role ends it.
pub(crate) fn retry_on_timeout<T>(mut statement: impl FnMut() -> QueryResult<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match statement().map_err(Error::from) {
            Err(Error::StatementTimeout(_)) if Instant::now() < deadline => {}
            answer => return answer,
        }
    }
}

/// Whether a server with this `lc_messages` sends English error messages.
pub(crate) fn is_english(messages: &str) -> bool {
    let language = messages.split(['_', '.', '-']).next().unwrap_or_default();
    matches!(language, "" | "C" | "POSIX" | "en" | "English")
}

#[cfg(test)]
mod tests {
    use super::is_english;

    #[test]
    fn the_language_of_messages_is_read_from_the_name_of_a_locale() {
        for english in ["", "C", "POSIX", "C.UTF-8", "en_US.UTF-8", "en-GB", "English_United States.1252"] {
            assert!(is_english(english), "{english}");
        }
        for other in ["de_DE.UTF-8", "de", "fr-FR", "German_Germany.1252", "Csb_PL"] {
            assert!(!is_english(other), "{other}");
        }
    }
}
