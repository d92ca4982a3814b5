//! Recognises why a connection failed by libpq's message, which has some lines for each host that it tried. Failed
//! statements are in `classify.rs`.

use std::fmt;

use diesel::ConnectionError;
use diesel::r2d2::PoolError;
use diesel::result::Error as DieselError;

use super::Error;
use super::violation::without_values;

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

/// Returns the error for a connection on which the pool's own statement failed.
pub(crate) fn setup_error(error: DieselError) -> Error {
    Error::Connect(ConnectionError::CouldntSetupConfiguration(without_values(error)))
}

/// With several hosts, libpq continues after a host that it cannot reach. It stops at the first host that refuses the
/// user or the database.
fn from_message(message: &str) -> Error {
    let failures = failures(message);
    let says = |words: &[&str]| {
        failures.iter().any(|failure| words.iter().any(|word| failure.reason.contains(word)))
    };
    if says(&["authentication", "pg_hba.conf", "no password supplied", "not permitted to log in"])
        || says(&["role \"..\" does not exist", "permission denied for database", "no such user"])
    {
        Error::AccessDenied
    } else if says(&["database \"..\" does not exist", "no such database"]) {
        Error::UnknownDatabase
    } else if says(&["SSL", "certificate", "channel binding"]) {
        Error::Tls
    } else if says(&["configuration parameter", "for parameter", "startup parameter", "to set parameter"])
        || says(&[
            "parameter \"..\" cannot be changed",
            "command-line argument",
            "requires a value",
            "invalid integer value",
        ])
    {
        Error::ConnectionString
    } else if failures.iter().any(|failure| failure.address.is_some()) {
        let shown = failures.iter().filter_map(|Failure { address, reason }| {
            Some([(*address)?, FAILED, reason.lines().next().unwrap_or_default()].concat())
        });
        Error::Connect(ConnectionError::BadConnection(shown.collect::<Vec<_>>().join("\n")))
    } else if says(&["could not translate host name"]) {
        Error::UnknownHost
    } else {
        Error::ConnectionString
    }
}

const REACHED: &str = "connection to server ";
const FAILED: &str = " failed: ";
/// The quotation marks around names, also in the languages of a server.
const QUOTES: [char; 4] = ['"', '\u{ab}', '\u{201e}', '\u{201c}'];

/// A part of libpq's message: the address of a server, if libpq tried to connect to it, and why that failed.
struct Failure<'m> {
    address: Option<&'m str>,
    reason: String,
}

fn failures(message: &str) -> Vec<Failure<'_>> {
    let starts = message.match_indices(REACHED).map(|(at, _)| at);
    let mut starts: Vec<_> = starts.filter(|at| message[..*at].ends_with('\n')).collect();
    starts.insert(0, 0);
    starts.push(message.len());
    let parts = starts.windows(2).map(|ends| &message[ends[0]..ends[1]]);
    parts
        .map(|part| {
            let split = part.starts_with(REACHED).then(|| part.split_once(FAILED)).flatten();
            let (address, reason) = split.map_or((None, part), |(address, reason)| (Some(address), reason));
            Failure { address, reason: without_names(reason) }
        })
        .collect()
}

/// A name in quotes may be a part of a password, so it becomes `..`. It may hold quotes and line breaks.
fn without_names(reason: &str) -> String {
    let end = ["\nDETAIL: ", "\nHINT: "].iter().filter_map(|field| reason.find(field)).min();
    let reason = &reason[..end.unwrap_or(reason.len())];
    match (reason.find(QUOTES), reason.rfind(QUOTES)) {
        (Some(first), Some(last)) if first < last => {
            [&reason[..first], "\"..\"", reason[last..].trim_start_matches(QUOTES)].concat()
        }
        (Some(only), _) => reason[..only].to_owned(),
        _ => reason.to_owned(),
    }
}

/// Why a pool could not open a connection, or dropped one. Its text shows no password. r2d2 passes the text to its
/// error handler, and shows it as the reason of a [`PoolError`].
#[derive(Debug)]
pub struct ConnectFailure(Error);

impl From<Error> for ConnectFailure {
    fn from(error: Error) -> Self {
        Self(error)
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

#[cfg(test)]
mod tests {
    use super::from_message;

    #[test]
    fn a_reason_shows_no_name_in_any_quotes() {
        let server = "connection to server at \"db\" (10.0.0.1), port 5432 failed: ";
        for (reason, shown) in [
            (
                "FATAL:  database \"s3cr3t\" is not currently accepting connections",
                "FATAL:  database \"..\" is not",
            ),
            (
                "FATAL:  database \"s3\ncr3t\" is not currently\nDETAIL:  The \"s3cr3t\"",
                "FATAL:  database \"..\" is not",
            ),
            ("FATAL:  database \"s3\n\"", "FATAL:  database \"..\""),
            ("FATAL:  database \"s3cr3t\nHINT:  none", "FATAL:  database "),
            ("FATAL:  Datenbank \u{201e}s3cr3t\u{201c} wird", "FATAL:  Datenbank \"..\" wird"),
            ("FATAL:  la base \u{ab} s3cr3t \u{bb} n'accepte", "FATAL:  la base "),
        ] {
            let said = format!("{:?}", from_message(&format!("{server}{reason}")));
            assert!(said.contains(&format!("{server}{shown}").escape_debug().to_string()), "{said}");
            assert!(!said.contains("s3") && !said.contains("cr3t"), "{said}");
        }
    }
}
