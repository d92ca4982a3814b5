//! A session before the migrator sets anything, and the settings that it will change.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel::prelude::*;
use diesel::sql_types::{Array, Integer, Nullable, Text, Timestamptz};

use crate::{Error, Result};

/// The oldest server that the crate works on.
const OLDEST_MAJOR: i32 = 14;

/// What a migrator sets, and puts back. A server that does not know a setting has none to change.
pub(crate) const SETTINGS: &[(&str, &str)] = &[
    // A build takes as long as it takes, and a step bounds its own waiting.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("transaction_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("default_transaction_isolation", "read committed"),
    // Rows that a policy hides would be missed: this makes the server say so instead.
    ("row_security", "off"),
    // As the definitions of the migrations are written.
    ("quote_all_identifiers", "off"),
];

/// What the session is before anything is set.
#[derive(QueryableByName)]
pub(crate) struct Outset {
    #[diesel(sql_type = Integer)]
    pub(crate) version_number: i32,
    #[diesel(sql_type = Text)]
    pub(crate) version: String,
    /// The schemas of the search path that exist and may be used, without the implicit ones.
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

impl Outset {
    /// Looks at the session with the first statement that is sent.
    ///
    /// A transaction that was begun by SQL is found by its time: two statements outside of one never
    /// have the same.
    pub(crate) fn look(conn: &mut PgConnection) -> Result<Self> {
        if AnsiTransactionManager::transaction_manager_status_mut(conn)
            .transaction_depth()
            .ok()
            .flatten()
            .is_some()
        {
            return Err(Error::AlreadyInTransaction);
        }
        let first = Self::read(conn)?;
        if first.version_number / 10_000 < OLDEST_MAJOR {
            return Err(Error::UnsupportedServer { version: first.version, oldest: OLDEST_MAJOR });
        }
        let second = Self::read(conn)?;
        if first.transaction_began == second.transaction_began {
            return Err(Error::AlreadyInTransaction);
        }
        Ok(second)
    }

    fn read(conn: &mut PgConnection) -> Result<Self> {
        let names: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).collect();
        patiently(|| {
            diesel::sql_query(include_str!("outset.sql")).bind::<Array<Text>, _>(&names).get_result(conn)
        })
    }
}

/// Sends a statement again while the role's own `statement_timeout` is too short for it.
pub(crate) fn patiently<T>(mut statement: impl FnMut() -> QueryResult<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match statement().map_err(Error::from) {
            Err(Error::StatementTimeout(_)) if Instant::now() < deadline => {}
            answer => return answer,
        }
    }
}

/// Whether a server with this `lc_messages` words its errors in English.
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
