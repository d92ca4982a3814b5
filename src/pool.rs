use std::fmt::{self, Write};
use std::time::Duration;

use diesel::connection::{CacheSize, SimpleConnection};
use diesel::prelude::*;
use diesel::r2d2::{self, ConnectionManager, CustomizeConnection};

use crate::timeouts::whole_milliseconds;
use crate::{Error, Result, Timeouts};

/// A pool of connections, as r2d2 has it. A clone is the same pool.
pub type Pool = r2d2::Pool<ConnectionManager<PgConnection>>;

/// Whether connections keep their prepared statements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatementCache {
    /// Each statement is parsed once a connection. For connections that reach the server directly.
    #[default]
    On,
    /// Nothing is kept in the server's session, neither statements nor settings. For connections through a
    /// bouncer in transaction mode, which hands the session to others after each transaction.
    Off,
}

/// Makes a [`Pool`] whose connections end what hangs: nobody holds a row lock for ever.
///
/// | setting | default | what it bounds |
/// |---|---|---|
/// | [`size`](Self::size) | 4 | the connections |
/// | [`wait`](Self::wait) | 5 s | how long `get` waits for one that is free |
/// | [`connect_timeout`](Self::connect_timeout) | 5 s | how long a server may take to answer at first |
/// | [`timeouts`](Self::timeouts) | [30 s, 5 s, 10 s](Timeouts) | a statement, a wait for a lock, an idle transaction |
/// | [`tcp_user_timeout`](Self::tcp_user_timeout) | 30 s | how long what was sent may stay unacknowledged |
/// | [`keepalives_idle`](Self::keepalives_idle) | 30 s | silence until a peer is asked whether it is there; after three times 10 s it is gone |
/// | [`application_name`](Self::application_name) | `api_keys_driver` | |
/// | [`statement_cache`](Self::statement_cache) | on | |
///
/// A connection is tried before `get` hands it out, which is a round trip: one that a restarted server
/// left behind is replaced unseen.
///
/// Behind PgBouncer in transaction mode, turn the statement cache off. Then the timeouts are not sent
/// either, because they would stay in a session that is others' next: give them to the role instead
/// (`ALTER ROLE worker SET lock_timeout = '5s'`, and so on), which the bouncer's own connections then
/// have from the start, or to each [`Transaction`](crate::Transaction::timeouts).
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
#[derive(Clone)]
pub struct PoolConfig {
    database_url: String,
    size: u32,
    wait: Duration,
    connect_timeout: Duration,
    timeouts: Timeouts,
    tcp_user_timeout: Duration,
    keepalives_idle: Duration,
    application_name: String,
    statement_cache: StatementCache,
}

impl PoolConfig {
    /// Takes a URL or key-value pairs, as libpq reads them. What they set themselves stands.
    pub fn new(database_url: impl Into<String>) -> Self {
        Self {
            database_url: database_url.into(),
            size: 4,
            wait: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            timeouts: Timeouts::default(),
            tcp_user_timeout: Duration::from_secs(30),
            keepalives_idle: Duration::from_secs(30),
            application_name: "api_keys_driver".into(),
            statement_cache: StatementCache::On,
        }
    }

    /// Sets how many connections there are, at least one.
    #[must_use]
    pub fn size(self, size: u32) -> Self {
        Self { size, ..self }
    }

    /// Sets how long `get` waits for a connection before it is [`Error::Pool`].
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// Sets how long a server may take to answer a new connection: whole seconds, two at least.
    #[must_use]
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Self { connect_timeout, ..self }
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
    /// [`Error::ConnectionString`] and [`Error::Connect`].
    pub fn build(&self) -> Result<Pool> {
        let database_url = self.connection_string();
        PgConnection::establish(&database_url).map_err(without_password)?;
        Ok(r2d2::Pool::builder()
            .max_size(self.size.max(1))
            .connection_timeout(self.wait)
            .connection_customizer(Box::new(Session {
                timeouts: self.timeouts,
                statement_cache: self.statement_cache,
            }))
            .build_unchecked(ConnectionManager::new(database_url)))
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
        with_parameters(&self.database_url, &parameters)
    }
}

/// Shows everything but the connection string, which may hold a password.
impl fmt::Debug for PoolConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolConfig")
            .field("size", &self.size)
            .field("wait", &self.wait)
            .field("connect_timeout", &self.connect_timeout)
            .field("timeouts", &self.timeouts)
            .field("tcp_user_timeout", &self.tcp_user_timeout)
            .field("keepalives_idle", &self.keepalives_idle)
            .field("application_name", &self.application_name)
            .field("statement_cache", &self.statement_cache)
            .finish_non_exhaustive()
    }
}

/// What a new connection is given before it is used.
#[derive(Debug)]
struct Session {
    timeouts: Timeouts,
    statement_cache: StatementCache,
}

impl CustomizeConnection<PgConnection, r2d2::Error> for Session {
    fn on_acquire(&self, conn: &mut PgConnection) -> Result<(), r2d2::Error> {
        match self.statement_cache {
            StatementCache::On => conn.batch_execute(&self.timeouts.to_sql("SET"))?,
            StatementCache::Off => conn.set_prepared_statement_cache_size(CacheSize::Disabled),
        }
        Ok(())
    }
}

/// libpq quotes what it cannot read, and that may be a part of the password. Once it has found a server
/// it has read everything, and quotes nothing but the server's name and words.
fn without_password(error: ConnectionError) -> Error {
    match &error {
        ConnectionError::BadConnection(said) if !said.starts_with("connection to server ") => {
            Error::ConnectionString
        }
        ConnectionError::InvalidCString(_) => Error::ConnectionString,
        _ => Error::Connect(error),
    }
}

/// Puts parameters in front of those that the string has, because libpq takes the last of two.
fn with_parameters(database_url: &str, parameters: &[(&str, String)]) -> String {
    let mut all = String::new();
    let Some((scheme, rest)) = database_url.split_once("://") else {
        for (name, value) in parameters {
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            let _ = write!(all, "{name}='{value}' ");
        }
        return all + database_url;
    };
    for (name, value) in parameters {
        let _ = write!(all, "{name}=");
        for byte in value.bytes() {
            let _ = write!(all, "%{byte:02X}");
        }
        all.push('&');
    }
    // A password may hold a `?`, and ends at the `@`.
    let address = rest.find(['@', '/']).filter(|end| rest[*end..].starts_with('@')).unwrap_or(0);
    let question = rest[address..].find('?').map_or(rest.len(), |at| address + at);
    let own = rest[question..].trim_start_matches('?');
    format!("{scheme}://{}?{all}{own}", &rest[..question])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::PoolConfig;

    #[test]
    fn what_bounds_a_connection_is_in_front_of_what_the_string_has() {
        let config = |string: &str| {
            PoolConfig::new(string)
                .connect_timeout(Duration::from_millis(7900))
                .tcp_user_timeout(Duration::from_micros(1500))
                .keepalives_idle(Duration::from_secs(9))
                .application_name("a'\\b")
                .connection_string()
        };
        let pairs = "connect_timeout='7' tcp_user_timeout='2' keepalives_idle='9' keepalives_interval='10' \
                     keepalives_count='3' application_name='a\\'\\\\b' ";
        assert_eq!(config("host=h"), format!("{pairs}host=h"));

        let parameters = "connect_timeout=%37&tcp_user_timeout=%32&keepalives_idle=%39&\
                          keepalives_interval=%31%30&keepalives_count=%33&application_name=%61%27%5C%62&";
        for (address, own) in [
            ("postgres://u:p@h/d", ""),
            ("postgres://h/d", "sslmode=disable"),
            ("postgres://u:a?b@h/d", "x=y"),
            ("postgres://h/a@b", "x=y"),
        ] {
            let string = if own.is_empty() { address.into() } else { format!("{address}?{own}") };
            assert_eq!(config(&string), format!("{address}?{parameters}{own}"));
        }
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
        assert!(shown.starts_with("PoolConfig { size: 3, wait: 5s,") && shown.ends_with(", .. }"), "{shown}");
    }
}
