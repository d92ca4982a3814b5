//! The server's limits on a session or a transaction, and how they are written in SQL.

use std::time::Duration;

/// How long the server lets a session go on before it ends what the session does. Zero is no limit.
///
/// Together they bound how long a worker that hangs can hold a row lock: it is in a statement, waits
/// for another's lock, or sits idle in its transaction. A transaction that keeps sending statements is
/// bounded by none of them.
///
/// PostgreSQL counts in whole milliseconds: anything finer is rounded up.
///
/// With the feature `serde`, a timeout is a text such as `"500ms"`, and one that is missing has its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Timeouts {
    /// The longest that a statement may run (`statement_timeout`). 30 seconds unless set.
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
    pub statement: Duration,
    /// The longest that a statement may wait for a lock (`lock_timeout`). 5 seconds unless set.
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
    pub lock: Duration,
    /// The longest that a transaction may sit between two statements
    /// (`idle_in_transaction_session_timeout`). Then the connection is closed. 10 seconds unless set.
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
    pub idle_in_transaction: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            statement: Duration::from_secs(30),
            lock: Duration::from_secs(5),
            idle_in_transaction: Duration::from_secs(10),
        }
    }
}

impl Timeouts {
    /// The settings as SQL, each behind `set`: `SET` or `SET LOCAL`.
    pub(crate) fn to_sql(self, set: &str) -> String {
        let [statement, lock, idle] =
            [self.statement, self.lock, self.idle_in_transaction].map(whole_milliseconds);
        format!(
            "{set} statement_timeout = {statement}; {set} lock_timeout = {lock}; \
             {set} idle_in_transaction_session_timeout = {idle}"
        )
    }
}

/// Rounded up, so that a short limit does not become none, and cut off at the most that the server takes.
pub(crate) fn whole_milliseconds(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128)
}
