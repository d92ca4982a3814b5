//! The pool and what it is configured with. How it opens and drops connections stands in `pool::manager`,
//! what a connection string holds in `pool::connection_string`.

mod connection_string;
mod manager;

use std::fmt;
use std::time::{Duration, Instant};

use diesel::r2d2;

pub use self::manager::PoolManager;

use crate::timeouts::whole_milliseconds;
use crate::{Result, Timeouts};

/// A pool of connections, as r2d2 has it. A clone is the same pool.
pub type Pool = r2d2::Pool<PoolManager>;

/// Whether connections keep their prepared statements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum StatementCache {
    /// Each statement is parsed once a connection. For connections that reach the server directly.
    #[default]
    On,
    /// Nothing is kept in the server's session, neither statements nor settings. For connections through a
    /// bouncer in transaction mode, which hands the session to others after each transaction.
    Off,
}

/// Makes a [`Pool`] whose sessions end by themselves when they hang, so that no row stays locked for ever.
///
/// | setting | default | what it bounds |
/// |---|---|---|
/// | [`size`](Self::size) | 4 | the connections |
/// | [`wait`](Self::wait) | 10 s | how long `get` waits for a free connection |
/// | [`connect_timeout`](Self::connect_timeout) | 3 s | how long each host may take to answer at first |
/// | [`max_lifetime`](Self::max_lifetime) | 30 min; 1 min with several hosts | the age of a connection |
/// | [`idle_timeout`](Self::idle_timeout) | 10 min | how long a connection may go unused |
/// | [`min_idle`](Self::min_idle) | `size` | the unused connections that are kept open |
/// | [`test_on_check_out`](Self::test_on_check_out) | yes | |
/// | [`timeouts`](Self::timeouts) | [30 s, 5 s, 10 s](Timeouts) | a statement, a wait for a lock, an idle transaction |
/// | [`tcp_user_timeout`](Self::tcp_user_timeout) | 30 s | how long what was sent may stay unacknowledged |
/// | [`keepalives_idle`](Self::keepalives_idle) | 30 s | silence before the peer is probed; after three probes 10 s apart it is gone |
/// | [`application_name`](Self::application_name) | `api_keys_driver` | |
/// | [`statement_cache`](Self::statement_cache) | on | |
///
/// A connection is tested before `get` hands it out, which is one round trip, so a connection to a server
/// that was restarted is replaced before anyone sees it. [`PoolManager`] says which connections are
/// dropped. For what r2d2 has beyond this, such as its event handler, take [`builder`](Self::builder).
///
/// # Several hosts
///
/// libpq tries the hosts of a connection string in order, each for `connect_timeout`; the default `wait`
/// leaves room for three that do not answer. With `target_session_attrs=read-write` a pool hands out no
/// session on a server that takes no writes any more. A server that only thinks it is still the primary
/// cannot be told that way, so connections live for one minute at most.
///
/// # What no timeout bounds
///
/// The timeouts of the session are kept by the server. A server process that is stopped (`SIGSTOP`, a
/// frozen virtual machine whose host still answers) keeps none of them, and its kernel goes on
/// acknowledging what is sent, so that neither `tcp_user_timeout` nor the probes notice. libpq has no
/// bound of its own for a statement. What supervises the server has to end such a process.
///
/// # Behind a bouncer
///
/// Behind PgBouncer in transaction mode, turn the statement cache off. Then the timeouts are not sent
/// either, because they would stay in a session that is others' next. Give them to the role instead
/// (`ALTER ROLE worker SET lock_timeout = '5s'`, and so on), so that the bouncer's own connections have
/// them from the start, or to each [`Transaction`](crate::Transaction::timeouts).
///
/// ```
/// use api_keys_driver::{KeysDriver, PoolConfig, Timeouts};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), throwaway_postgres::BoxError> {
/// # let database = throwaway_postgres::empty()?.prepare(api_keys_driver::migrate)?;
/// # let database_url = database.url();
/// let pool = PoolConfig::new(database_url)
///     .size(8)
///     .timeouts(Timeouts { lock: Duration::from_secs(1), ..Timeouts::default() })
///     .build()?;
/// let count = KeysDriver::new(&mut *pool.get()?).count_keys(&"nobody".into())?;
/// # assert_eq!(count, 0);
/// # Ok(())
/// # }
/// ```
///
/// With the feature `serde`, a configuration is read from a file or from the environment: `database_url`
/// is required, each other setting has its default, durations are texts such as `"500ms"`, and an unknown
/// name is an error. It is not written, because it holds the password.
#[derive(Clone)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct PoolConfig {
    database_url: String,
    #[cfg_attr(feature = "serde", serde(default = "default::size"))]
    size: u32,
    #[cfg_attr(feature = "serde", serde(default = "default::wait", with = "humantime_serde"))]
    wait: Duration,
    #[cfg_attr(feature = "serde", serde(default = "default::connect_timeout", with = "humantime_serde"))]
    connect_timeout: Duration,
    #[cfg_attr(feature = "serde", serde(default, with = "humantime_serde"))]
    max_lifetime: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(default = "default::idle_timeout", with = "humantime_serde"))]
    idle_timeout: Duration,
    #[cfg_attr(feature = "serde", serde(default))]
    min_idle: Option<u32>,
    #[cfg_attr(feature = "serde", serde(default = "default::test_on_check_out"))]
    test_on_check_out: bool,
    #[cfg_attr(feature = "serde", serde(default))]
    timeouts: Timeouts,
    #[cfg_attr(feature = "serde", serde(default = "default::silence", with = "humantime_serde"))]
    tcp_user_timeout: Duration,
    #[cfg_attr(feature = "serde", serde(default = "default::silence", with = "humantime_serde"))]
    keepalives_idle: Duration,
    #[cfg_attr(feature = "serde", serde(default = "default::application_name"))]
    application_name: String,
    #[cfg_attr(feature = "serde", serde(default))]
    statement_cache: StatementCache,
}

mod default {
    use std::time::Duration;

    pub(super) fn size() -> u32 {
        4
    }

    pub(super) fn wait() -> Duration {
        Duration::from_secs(10)
    }

    pub(super) fn connect_timeout() -> Duration {
        Duration::from_secs(3)
    }

    pub(super) fn max_lifetime(several_hosts: bool) -> Duration {
        Duration::from_secs(if several_hosts { 60 } else { 30 * 60 })
    }

    pub(super) fn idle_timeout() -> Duration {
        Duration::from_secs(10 * 60)
    }

    pub(super) fn test_on_check_out() -> bool {
        true
    }

    pub(super) fn silence() -> Duration {
        Duration::from_secs(30)
    }

    pub(super) fn application_name() -> String {
        "api_keys_driver".into()
    }
}

impl PoolConfig {
    /// Takes a URL or key-value pairs, as libpq reads them. What they set themselves is not changed; what a
    /// service file or libpq's environment variables set is.
    pub fn new(database_url: impl Into<String>) -> Self {
        Self {
            database_url: database_url.into(),
            size: default::size(),
            wait: default::wait(),
            connect_timeout: default::connect_timeout(),
            max_lifetime: None,
            idle_timeout: default::idle_timeout(),
            min_idle: None,
            test_on_check_out: default::test_on_check_out(),
            timeouts: Timeouts::default(),
            tcp_user_timeout: default::silence(),
            keepalives_idle: default::silence(),
            application_name: default::application_name(),
            statement_cache: StatementCache::default(),
        }
    }

    /// Sets how many connections there are, at least one.
    #[must_use]
    pub fn size(self, size: u32) -> Self {
        Self { size, ..self }
    }

    /// Sets how long `get` waits for a connection. Longer is [`Error::Pool`](crate::Error::Pool) when all are in use, and the
    /// reason when none can be made, such as [`Error::Connect`](crate::Error::Connect).
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// Sets how long each host may take to answer a new connection: whole seconds, two at least.
    #[must_use]
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Self { connect_timeout, ..self }
    }

    /// Sets the age at which a connection is replaced: when it is given back, or while it is unused, within
    /// 30 seconds. Zero is no limit.
    #[must_use]
    pub fn max_lifetime(self, max_lifetime: Duration) -> Self {
        Self { max_lifetime: Some(max_lifetime), ..self }
    }

    /// Sets how long a connection may go unused before it is closed, if there are more than
    /// [`min_idle`](Self::min_idle). Zero is no limit.
    #[must_use]
    pub fn idle_timeout(self, idle_timeout: Duration) -> Self {
        Self { idle_timeout, ..self }
    }

    /// Sets how many unused connections are kept open.
    #[must_use]
    pub fn min_idle(self, min_idle: u32) -> Self {
        Self { min_idle: Some(min_idle), ..self }
    }

    /// Sets whether a connection is tested before it is handed out. Without the test, the first call after
    /// a server's restart fails once for each connection.
    #[must_use]
    pub fn test_on_check_out(self, test_on_check_out: bool) -> Self {
        Self { test_on_check_out, ..self }
    }

    /// Sets the session's timeouts.
    #[must_use]
    pub fn timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// Sets how long what was sent over TCP may stay unacknowledged before the connection is lost.
    #[must_use]
    pub fn tcp_user_timeout(self, tcp_user_timeout: Duration) -> Self {
        Self { tcp_user_timeout, ..self }
    }

    /// Sets how long a TCP connection may be silent before its other end is probed: whole seconds.
    #[must_use]
    pub fn keepalives_idle(self, keepalives_idle: Duration) -> Self {
        Self { keepalives_idle, ..self }
    }

    /// Sets the name by which the server's views and logs show the connections.
    #[must_use]
    pub fn application_name(self, application_name: impl Into<String>) -> Self {
        Self { application_name: application_name.into(), ..self }
    }

    /// Sets whether connections keep their prepared statements.
    #[must_use]
    pub fn statement_cache(self, statement_cache: StatementCache) -> Self {
        Self { statement_cache, ..self }
    }

    /// Connects once, so that what is wrong shows here, and makes the pool.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectionString`](crate::Error::ConnectionString), [`Error::AccessDenied`](crate::Error::AccessDenied), [`Error::UnknownDatabase`](crate::Error::UnknownDatabase) and [`Error::Tls`](crate::Error::Tls),
    /// which a repetition does not mend; [`Error::UnknownHost`](crate::Error::UnknownHost) and [`Error::Connect`](crate::Error::Connect), which it may.
    pub fn build(&self) -> Result<Pool> {
        let manager = self.manager();
        manager.open()?;
        Ok(self.builder().build_unchecked(manager))
    }

    /// Returns r2d2's builder with these settings, for those that only r2d2 has. It takes
    /// [`manager`](Self::manager).
    ///
    /// ```
    /// # use api_keys_driver::PoolConfig;
    /// use diesel::r2d2::event::{HandleEvent, TimeoutEvent};
    ///
    /// #[derive(Debug)]
    /// struct CountTimeouts;
    ///
    /// impl HandleEvent for CountTimeouts {
    ///     fn handle_timeout(&self, event: TimeoutEvent) {
    ///         eprintln!("no connection within {:?}", event.timeout());
    ///     }
    /// }
    ///
    /// # let database = throwaway_postgres::empty().unwrap();
    /// let config = PoolConfig::new(database.url()).size(2);
    /// let pool = config.builder().event_handler(Box::new(CountTimeouts)).build_unchecked(config.manager());
    /// # assert!(pool.get().is_ok());
    /// ```
    #[must_use]
    pub fn builder(&self) -> r2d2::Builder<PoolManager> {
        let limit = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());
        let size = self.size.max(1);
        r2d2::Pool::builder()
            .max_size(size)
            .min_idle(self.min_idle.map(|min_idle| min_idle.min(size)))
            .connection_timeout(self.wait.max(Duration::from_millis(1)))
            .max_lifetime(limit(self.lifetime()))
            .idle_timeout(limit(self.idle_timeout))
            .test_on_check_out(self.test_on_check_out)
    }

    /// Returns what opens and tests the pool's connections, for r2d2's builder.
    #[must_use]
    pub fn manager(&self) -> PoolManager {
        PoolManager {
            connection_string: self.connection_string(),
            timeouts: self.timeouts,
            statement_cache: self.statement_cache,
            max_lifetime: Some(self.lifetime()).filter(|lifetime| !lifetime.is_zero()),
            target: connection_string::target(&self.database_url),
            start: Instant::now(),
        }
    }

    fn lifetime(&self) -> Duration {
        let several_hosts = connection_string::has_several_hosts(&self.database_url);
        self.max_lifetime.unwrap_or(default::max_lifetime(several_hosts))
    }

    fn connection_string(&self) -> String {
        let parameters = [
            ("connect_timeout", self.connect_timeout.as_secs().max(2).to_string()),
            ("tcp_user_timeout", whole_milliseconds(self.tcp_user_timeout).to_string()),
            ("keepalives_idle", self.keepalives_idle.as_secs().max(1).to_string()),
            ("keepalives_interval", "10".into()),
            ("keepalives_count", "3".into()),
            ("application_name", self.application_name.clone()),
        ];
        connection_string::with_parameters(&self.database_url, &parameters)
    }
}

/// Shows everything but the connection string, which may hold a password.
impl fmt::Debug for PoolConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolConfig")
            .field("size", &self.size)
            .field("wait", &self.wait)
            .field("connect_timeout", &self.connect_timeout)
            .field("max_lifetime", &self.lifetime())
            .field("idle_timeout", &self.idle_timeout)
            .field("min_idle", &self.min_idle)
            .field("test_on_check_out", &self.test_on_check_out)
            .field("timeouts", &self.timeouts)
            .field("tcp_user_timeout", &self.tcp_user_timeout)
            .field("keepalives_idle", &self.keepalives_idle)
            .field("application_name", &self.application_name)
            .field("statement_cache", &self.statement_cache)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::PoolConfig;

    #[test]
    fn what_bounds_a_connection_is_in_front_of_what_the_string_has() {
        let config = PoolConfig::new("host=h")
            .connect_timeout(Duration::from_millis(7900))
            .tcp_user_timeout(Duration::from_micros(1500))
            .keepalives_idle(Duration::from_secs(9))
            .application_name("mine");
        let expected = "connect_timeout='7' tcp_user_timeout='2' keepalives_idle='9' keepalives_interval='10' \
                        keepalives_count='3' application_name='mine' host=h";
        assert_eq!(config.connection_string(), expected);
    }

    #[test]
    fn a_connection_is_not_given_up_before_it_was_tried() {
        let config = PoolConfig::new("h").connect_timeout(Duration::ZERO).keepalives_idle(Duration::ZERO);
        let string = config.connection_string();
        assert!(string.contains("connect_timeout='2'") && string.contains("keepalives_idle='1'"), "{string}");
    }

    #[test]
    fn debug_shows_the_settings() {
        let shown = format!("{:?}", PoolConfig::new("secret").size(3));
        assert!(
            shown.starts_with("PoolConfig { size: 3, wait: 10s,") && shown.ends_with(", .. }"),
            "{shown}"
        );
    }
}
