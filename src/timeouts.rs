//! The timeouts of a session or a transaction, and their SQL. Timeouts of a connection are in `pool.rs`.

use std::time::Duration;

/// The server's timeouts for a session or a transaction. Zero is no limit.
///
/// Together they limit how long a worker that hangs can hold a row lock. Such a worker runs a statement, waits for a
/// lock, or is idle in its transaction. They do not limit a transaction that keeps sending statements.
///
/// PostgreSQL uses whole milliseconds. A shorter fraction is rounded up.
///
/// With the feature `serde`, a timeout is a text such as `"500ms"`. A missing timeout has its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Timeouts {
    /// How long a statement may run (`statement_timeout`). The default is 30 seconds.
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
    pub statement: Duration,
    /// How long a statement may wait for a lock (`lock_timeout`). The default is 5 seconds.
    #[cfg_attr(feature = "serde", serde(with = "humantime_serde"))]
    pub lock: Duration,
    /// How long a transaction may be idle between two statements (`idle_in_transaction_session_timeout`). After that,
    /// the server closes the connection. The default is 10 seconds.
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
    /// Returns the timeouts as SQL. `set` is `SET` or `SET LOCAL`.
    pub(crate) fn to_sql(self, set: &str) -> String {
        let [statement, lock, idle] =
            [self.statement, self.lock, self.idle_in_transaction].map(whole_milliseconds);
        format!(
            "{set} statement_timeout = {statement}; {set} lock_timeout = {lock}; \
             {set} idle_in_transaction_session_timeout = {idle}"
        )
    }
}

/// Rounds up, so that a short limit does not become 0, which is no limit. The result is at most the server's maximum.
pub(crate) fn whole_milliseconds(duration: Duration) -> u128 {
    duration.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128)
}
