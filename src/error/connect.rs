//! Why there is no connection, told from libpq's words: some lines for each host that was tried.

use std::fmt;

use diesel::ConnectionError;
use diesel::r2d2::PoolError;

use super::Error;

/// Tells a failed connection apart, and keeps nothing of what libpq said that may quote the password.
///
/// libpq quotes what it cannot read, and of a string that it misreads, a part of the password may be the
/// host, the user or the database. A server's address is safe once a connection to it was tried.
pub(crate) fn connect_error(error: ConnectionError) -> Error {
    match error {
        ConnectionError::BadConnection(said) => of_words(&said),
        ConnectionError::InvalidCString(_) | ConnectionError::InvalidConnectionUrl(_) => {
            Error::ConnectionString
        }
        other => Error::Connect(other),
    }
}

/// With several hosts, libpq goes on after one that it does not reach, and stops at the first that
/// refuses the user or the database.
fn of_words(said: &str) -> Error {
    let lines = || said.lines().map(|line| (line, reason(line)));
    let says = |words: &[&str]| lines().any(|(_, reason)| words.iter().any(|word| reason.contains(word)));
    if says(&["authentication", "pg_hba.conf", "no password supplied", "not permitted to log in"])
        || says(&["role \"..\" does not exist", "permission denied for database", "no such user"])
    {
        Error::AccessDenied
    } else if says(&["database \"..\" does not exist", "no such database"]) {
        Error::UnknownDatabase
    } else if says(&["SSL", "certificate"]) {
        Error::Tls
    } else if lines().any(|(line, _)| line.starts_with(REACHED)) {
        let reached = lines().filter(|(line, _)| line.starts_with(REACHED));
        let said: Vec<_> = reached.map(|(line, reason)| [address(line), FAILED, &reason].concat()).collect();
        Error::Connect(ConnectionError::BadConnection(said.join("\n")))
    } else if says(&["could not translate host name"]) {
        Error::UnknownHost
    } else {
        Error::ConnectionString
    }
}

const REACHED: &str = "connection to server ";
const FAILED: &str = " failed: ";

/// The server's address in a line, or the whole of a line that has none.
fn address(line: &str) -> &str {
    line.split_once(FAILED).map_or(line, |(address, _)| address)
}

/// What a line says of the failure. A name in quotes may be a part of a password, and is left out.
fn reason(line: &str) -> String {
    let reason = line.strip_prefix(address(line)).and_then(|rest| rest.strip_prefix(FAILED)).unwrap_or(line);
    match (reason.find('"'), reason.rfind('"')) {
        (Some(first), Some(last)) if first < last => [&reason[..=first], "..", &reason[last..]].concat(),
        _ => reason.to_owned(),
    }
}

/// Why a pool could not open or keep a connection, without a password. r2d2 hands its text on, to its
/// error handler and as the reason of a [`PoolError`].
#[derive(Debug)]
pub struct ConnectFailure(Error);

impl From<Error> for ConnectFailure {
    fn from(error: Error) -> Self {
        Self(match error {
            Error::Query(source) | Error::ConnectionLost(source) | Error::ReadOnly(source) => {
                Error::Connect(ConnectionError::CouldntSetupConfiguration(source))
            }
            other => other,
        })
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        std::error::Error::source(&self.0).map_or(Ok(()), |source| write!(f, ": {source}"))
    }
}

impl std::error::Error for ConnectFailure {}

/// r2d2 keeps the text of the last failure to connect. Without one, every connection was in use.
pub(super) fn pool_error(error: PoolError) -> Error {
    let text = error.to_string();
    let Some((_, words)) = text.split_once("timed out waiting for connection: ") else {
        return Error::Pool(error);
    };
    let unreached = Error::Connect(ConnectionError::BadConnection(String::new())).to_string();
    if let Some(said) = words.strip_prefix(&unreached) {
        return Error::Connect(ConnectionError::BadConnection(said.trim_start_matches(": ").into()));
    }
    let told_apart = [
        Error::AccessDenied,
        Error::UnknownDatabase,
        Error::Tls,
        Error::UnknownHost,
        Error::ConnectionString,
    ];
    // Not one of these: from a pool that this crate did not make, in libpq's words.
    told_apart.into_iter().find(|known| known.to_string() == words).unwrap_or_else(|| of_words(words))
}
