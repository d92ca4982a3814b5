//! Recognises why a connection failed by libpq's message, which has some lines for each host that it tried. Failed
//! statements are in `classify.rs`.

use std::fmt;

use diesel::ConnectionError;
use diesel::r2d2::PoolError;

use super::Error;

/// Returns the error for a failed connection, without any part of libpq's message that may quote the password.
///
/// libpq quotes what it cannot read. If it misreads the connection string, it may take a part of the password for the
/// host, the user or the database. A server's address is safe to show after libpq has tried to connect to it.
pub(crate) fn connect_error(error: ConnectionError) -> Error {
    match error {
        ConnectionError::BadConnection(message) => from_message(&message),
        ConnectionError::InvalidCString(_) | ConnectionError::InvalidConnectionUrl(_) => {
            Error::ConnectionString
        }
        other => Error::Connect(other),
    }
}

/// With several hosts, libpq continues after a host that it cannot reach. It stops at the first host that refuses the
/// user or the database.
fn from_message(message: &str) -> Error {
    let lines = || message.lines().map(|line| (line, reason(line)));
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
        let shown: Vec<_> = reached.map(|(line, reason)| [address(line), FAILED, &reason].concat()).collect();
        Error::Connect(ConnectionError::BadConnection(shown.join("\n")))
    } else if says(&["could not translate host name"]) {
        Error::UnknownHost
    } else {
        Error::ConnectionString
    }
}

const REACHED: &str = "connection to server ";
const FAILED: &str = " failed: ";

/// The server's address in a line. If the line has none, the whole line.
fn address(line: &str) -> &str {
    line.split_once(FAILED).map_or(line, |(address, _)| address)
}

/// The reason in a line. A name in quotes may be a part of a password, so it becomes `..`.
fn reason(line: &str) -> String {
    let reason = line.strip_prefix(address(line)).and_then(|rest| rest.strip_prefix(FAILED)).unwrap_or(line);
    match (reason.find('"'), reason.rfind('"')) {
        (Some(first), Some(last)) if first < last => [&reason[..=first], "..", &reason[last..]].concat(),
        _ => reason.to_owned(),
    }
}

/// Why a pool could not open a connection, or dropped one. Its text shows no password. r2d2 passes the text to its
/// error handler, and shows it as the reason of a [`PoolError`].
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

/// The error for a failed `get`. r2d2 adds the text of the last failed connection. If there is none, all connections
/// were in use.
pub(super) fn pool_error(error: PoolError) -> Error {
    let text = error.to_string();
    let Some((_, message)) = text.split_once("timed out waiting for connection: ") else {
        return Error::Pool(error);
    };
    let connect = Error::Connect(ConnectionError::BadConnection(String::new())).to_string();
    if let Some(reason) = message.strip_prefix(&connect) {
        return Error::Connect(ConnectionError::BadConnection(reason.trim_start_matches(": ").into()));
    }
    let without_source = [
        Error::AccessDenied,
        Error::UnknownDatabase,
        Error::Tls,
        Error::UnknownHost,
        Error::ConnectionString,
    ];
    // Any other message is libpq's own, from a pool that this crate did not make.
    without_source
        .into_iter()
        .find(|error| error.to_string() == message)
        .unwrap_or_else(|| from_message(message))
}
