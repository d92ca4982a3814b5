//! The configuration of a connection pool. Opening, testing and dropping connections is in `pool::manager`, reading
//! connection strings in `pool::connection_string`, and reading settings in `pool::settings`.

mod connection_string;
mod manager;
#[cfg(feature = "serde")]
mod settings;
mod watch;

use std::fmt;
use std::time::{Duration, Instant};

use diesel::r2d2;

pub use self::manager::PoolManager;

use self::manager::unusable;
use crate::error::connect_error;
use crate::timeouts::whole_milliseconds;
use crate::{Error, Result, Timeouts};

/// A pool of connections, as [`PoolConfig`] describes it. A clone uses the same pool.
///
/// It is r2d2's pool, whose [`get`](Self::get) returns this crate's error. So an engine needs one `From` for the errors of
/// the pool and of the drivers.
#[derive(Clone, Debug)]
pub struct Pool(r2d2::Pool<PoolManager>);

/// A connection of a [`Pool`]. When it is dropped, the pool can return it again.
pub type PooledConnection = r2d2::PooledConnection<PoolManager>;

impl Pool {
    /// Returns a free connection, or opens one. It waits for at most [`PoolConfig::wait`], and tests the connection
    /// first, unless [`PoolConfig::test_on_check_out`] is off.
    ///
    /// # Errors
    ///
    /// - [`Error::Pool`] if all connections are in use.
    /// - The errors of [`PoolConfig::build`] if a further connection cannot be opened. [`Error::Connect`] also if opening
    ///   it takes longer than the wait.
    pub fn get(&self) -> Result<PooledConnection> {
        self.0.get().map_err(|error| match Error::from(error) {
            // r2d2 opens further connections meanwhile, and has no reason yet.
            Error::Pool(_) if self.0.state().connections < self.0.max_size() => {
                connect_error(unusable("there was no answer within the pool's wait"))
            }
            error => error,
        })
    }

    /// Returns r2d2's pool, for its state and its settings.
    #[must_use]
    pub fn as_r2d2(&self) -> &r2d2::Pool<PoolManager> {
        &self.0
    }
}

/// For a pool that r2d2's builder made: see [`PoolConfig::builder`].
impl From<r2d2::Pool<PoolManager>> for Pool {
    fn from(pool: r2d2::Pool<PoolManager>) -> Self {
        Self(pool)
    }
}

/// Whether connections keep their prepared statements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum StatementCache {
    /// Each connection prepares a statement once. Use it if connections go directly to the server.
    #[default]
    On,
    /// Connections keep no prepared statements and no settings in the server's session. Use it behind a bouncer in
    /// transaction mode, which gives the session to another client after each transaction.
    Off,
}

/// Configures a [`Pool`] whose connections have timeouts, so that a worker that hangs does not lock a row forever.
///
/// | setting | default | meaning |
/// |---|---|---|
/// | [`size`](Self::size) | 4 | the number of connections |
/// | [`wait`](Self::wait) | 10 s | how long `get` waits for a free connection |
/// | [`connect_timeout`](Self::connect_timeout) | 3 s | how long each host may take to accept a connection |
/// | [`max_lifetime`](Self::max_lifetime) | 30 min; 1 min with several hosts | the age at which a connection is replaced |
/// | [`idle_timeout`](Self::idle_timeout) | 10 min | how long a connection may be unused |
/// | [`min_idle`](Self::min_idle) | `size` | the number of unused connections that stay open |
/// | [`test_on_check_out`](Self::test_on_check_out) | yes | whether `get` tests a connection |
/// | [`timeouts`](Self::timeouts) | [30 s, 5 s, 10 s](Timeouts) | a statement, a wait for a lock, an idle transaction |
/// | [`tcp_user_timeout`](Self::tcp_user_timeout) | 30 s | how long sent data may stay unacknowledged |
/// | [`keepalives_idle`](Self::keepalives_idle) | 30 s | the silence before the server is probed; after three probes, 10 s apart, the connection is lost |
/// | [`application_name`](Self::application_name) | `api_keys_driver` | the name in the server's views and logs |
/// | [`statement_cache`](Self::statement_cache) | on | whether connections keep prepared statements |
///
/// `get` tests a connection before it returns it, which takes one round trip. So a connection to a server that was
/// restarted is replaced. [`PoolManager`] says which connections the pool drops. Use [`builder`](Self::builder) for
/// settings that only r2d2 has, such as an event handler.
///
/// # Several hosts
///
/// libpq tries the hosts of a connection string in order, each for `connect_timeout`. The default `wait` is long
/// enough for three hosts that do not answer. With `target_session_attrs=read-write`, the pool does not return a
/// connection to a server that has become read-only. This test does not detect a former primary that still accepts
/// writes. For this reason, connections to several hosts live for one minute by default.
///
/// # Hangs without a timeout
///
/// The server enforces the timeouts of a session. A server process that is stopped (by `SIGSTOP`, or in a frozen
/// virtual machine whose host still answers) does not enforce them. Its kernel still acknowledges the sent data, so
/// `tcp_user_timeout` and the probes do not detect this. libpq has no timeout for a statement. The supervisor of the
/// server must end such a process.
///
/// # Behind a bouncer
///
/// Turn the statement cache off behind PgBouncer in transaction mode. The pool then does not set the timeouts either,
/// because another client would get a session with these settings. Set them for the role instead
/// (`ALTER ROLE worker SET lock_timeout = '5s'`, and so on), so that the bouncer's connections have them from the
/// start. Or set them for each transaction with [`Transaction::timeouts`](crate::Transaction::timeouts).
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
/// With the feature `serde`, a configuration can be deserialised, for example from a file. `database_url` is required,
/// and every other setting has its default. Durations are texts such as `"500ms"`. An unknown name is an error. A
/// configuration cannot be serialised, because it holds the password.
#[derive(Clone)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, remote = "Self"))]
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

/// r2d2 panics if the end of the wait is beyond the range of an `Instant`.
const LONGEST_WAIT: Duration = Duration::from_secs(i32::MAX as u64);
/// libpq's maximum, in seconds.
const LONGEST_CONNECT_TIMEOUT: u64 = i32::MAX as u64;
/// Linux's maximum, in seconds. Beyond it, libpq cannot connect.
const LONGEST_SILENCE: u64 = 32_767;

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
    /// Makes a configuration for a connection string of libpq: a URL or key-value pairs.
    ///
    /// The settings of the pool do not override parameters in the connection string. They do override a service file
    /// and libpq's environment variables.
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

    /// Sets the number of connections, at least one.
    #[must_use]
    pub fn size(self, size: u32) -> Self {
        Self { size, ..self }
    }

    /// Sets how long `get` waits for a connection. After that, `get` returns [`Error::Pool`] if all connections are in
    /// use. If no connection can be opened, it returns the reason, such as [`Error::Connect`].
    ///
    /// The reason is known when an attempt to connect has failed. So wait at least as long as an attempt may take:
    /// `connect_timeout` for each host. With a shorter wait, the error does not name the host that does not answer.
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// Sets how long each host may take to accept a connection, in whole seconds, at least two.
    #[must_use]
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Self { connect_timeout, ..self }
    }

    /// Sets the age at which a connection is replaced: when it is returned to the pool, or within 30 seconds while it
    /// is unused. Zero is no limit.
    #[must_use]
    pub fn max_lifetime(self, max_lifetime: Duration) -> Self {
        Self { max_lifetime: Some(max_lifetime), ..self }
    }

    /// Sets how long a connection may be unused before it is closed. [`min_idle`](Self::min_idle) connections stay
    /// open. Zero is no limit.
    #[must_use]
    pub fn idle_timeout(self, idle_timeout: Duration) -> Self {
        Self { idle_timeout, ..self }
    }

    /// Sets the number of unused connections that stay open, at most [`size`](Self::size).
    #[must_use]
    pub fn min_idle(self, min_idle: u32) -> Self {
        Self { min_idle: Some(min_idle), ..self }
    }

    /// Sets whether `get` tests a connection before it returns it, in one round trip. Without the test, each connection
    /// fails once after a restart of the server. A session on a former primary is used until it is too old. If a user
    /// leaves a transaction open with `BEGIN` as SQL, the next user's writes are lost with it.
    #[must_use]
    pub fn test_on_check_out(self, test_on_check_out: bool) -> Self {
        Self { test_on_check_out, ..self }
    }

    /// Sets the timeouts of each session. They are not set if the statement cache is off.
    #[must_use]
    pub fn timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// Sets how long data that was sent over TCP may stay unacknowledged before the connection is lost.
    #[must_use]
    pub fn tcp_user_timeout(self, tcp_user_timeout: Duration) -> Self {
        Self { tcp_user_timeout, ..self }
    }

    /// Sets how long a TCP connection may be silent before the server is probed, in whole seconds, from 1 to 32,767.
    #[must_use]
    pub fn keepalives_idle(self, keepalives_idle: Duration) -> Self {
        Self { keepalives_idle, ..self }
    }

    /// Sets the name of the connections in the server's views and logs.
    #[must_use]
    pub fn application_name(self, application_name: impl Into<String>) -> Self {
        Self { application_name: application_name.into(), ..self }
    }

    /// Sets whether connections keep their prepared statements.
    #[must_use]
    pub fn statement_cache(self, statement_cache: StatementCache) -> Self {
        Self { statement_cache, ..self }
    }

    /// Makes the pool. It opens one connection first, so that a wrong configuration fails here.
    ///
    /// # Errors
    ///
    /// - [`Error::ConnectionString`], [`Error::AccessDenied`], [`Error::UnknownDatabase`] and [`Error::Tls`]: another
    ///   attempt fails again.
    /// - [`Error::UnknownHost`] and [`Error::Connect`]: another attempt may succeed.
    pub fn build(&self) -> Result<Pool> {
        let manager = self.manager();
        manager.open()?;
        Ok(self.builder().build_unchecked(manager).into())
    }

    /// Returns r2d2's builder with these settings, to add settings that only r2d2 has. Build the pool with
    /// [`manager`](Self::manager).
    ///
    /// ```
    /// use api_keys_driver::{Pool, PoolConfig};
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
    /// let builder = config.builder().event_handler(Box::new(CountTimeouts));
    /// let pool = Pool::from(builder.build_unchecked(config.manager()));
    /// # assert!(pool.get().is_ok());
    /// ```
    #[must_use]
    pub fn builder(&self) -> r2d2::Builder<PoolManager> {
        let limit = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());
        let size = self.size.max(1);
        r2d2::Pool::builder()
            .max_size(size)
            .min_idle(self.min_idle.map(|min_idle| min_idle.min(size)))
            .connection_timeout(self.wait.clamp(Duration::from_millis(1), LONGEST_WAIT))
            .max_lifetime(limit(self.lifetime()))
            .idle_timeout(limit(self.idle_timeout))
            .test_on_check_out(self.test_on_check_out)
    }

    /// Returns the manager that opens and tests the connections, for r2d2's builder.
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
            ("connect_timeout", self.connect_timeout.as_secs().clamp(2, LONGEST_CONNECT_TIMEOUT).to_string()),
            ("tcp_user_timeout", whole_milliseconds(self.tcp_user_timeout).to_string()),
            ("keepalives_idle", self.keepalives_idle.as_secs().clamp(1, LONGEST_SILENCE).to_string()),
            ("keepalives_interval", "10".into()),
            ("keepalives_count", "3".into()),
            ("application_name", self.application_name.clone()),
        ];
        connection_string::with_parameters(&self.database_url, &parameters)
    }
}

/// Shows all settings except the connection string, which may hold a password.
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
    fn the_parameters_of_the_pool_come_before_those_of_the_connection_string() {
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
    fn a_connection_has_the_defaults_that_the_documentation_names() {
        let expected = "connect_timeout='3' tcp_user_timeout='30000' keepalives_idle='30' keepalives_interval='10' \
                        keepalives_count='3' application_name='api_keys_driver' host=h";
        assert_eq!(PoolConfig::new("host=h").connection_string(), expected);
    }

    #[test]
    fn timeouts_of_zero_become_the_smallest_that_libpq_accepts() {
        let config = PoolConfig::new("h").connect_timeout(Duration::ZERO).keepalives_idle(Duration::ZERO);
        let string = config.connection_string();
        assert!(string.contains("connect_timeout='2'") && string.contains("keepalives_idle='1'"), "{string}");
    }

    #[test]
    fn longer_timeouts_become_the_longest_that_libpq_accepts() {
        let config = PoolConfig::new("h").connect_timeout(Duration::MAX).keepalives_idle(Duration::MAX);
        let string = config.connection_string();
        assert!(
            string.contains("connect_timeout='2147483647'") && string.contains("keepalives_idle='32767'")
        );
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
