//! Recognises the kind of a failed statement by Diesel's error kinds, and otherwise by the server's message. Failed
//! connections are in `connect.rs`.

use diesel::result::DatabaseErrorKind::{
    ClosedConnection, ReadOnlyTransaction, SerializationFailure, UnableToSendCommand, UniqueViolation,
};
use diesel::result::Error as DieselError;

use super::{Advice, known_advice_on};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Deadlock,
    SerializationFailure,
    LockTimeout,
    StatementTimeout,
    ReadOnly,
    ConnectionLost,
    CommitUnknown,
    TransactionAborted,
    UniqueViolation { constraint: String },
    SchemaMismatch,
    PreparedStatementLost,
    UnencodableText,
    InvalidText,
    Other,
}

impl Kind {
    pub(super) fn of(error: &DieselError) -> Self {
        match error {
            // A standby that ends a session to replay changes sends the code of a serialization failure.
            DieselError::DatabaseError(_, said) if said.message().starts_with("terminating connection ") => {
                Self::ConnectionLost
            }
            DieselError::DatabaseError(SerializationFailure, _) => Self::SerializationFailure,
            DieselError::DatabaseError(ReadOnlyTransaction, _) => Self::ReadOnly,
            DieselError::DatabaseError(ClosedConnection | UnableToSendCommand, _)
            | DieselError::BrokenTransactionManager => Self::ConnectionLost,
            DieselError::DatabaseError(UniqueViolation, said) => Self::UniqueViolation {
                constraint: said.constraint_name().unwrap_or("a unique index").to_owned(),
            },
            DieselError::DatabaseError(_, said) => Self::from_message(said.message()),
            DieselError::DeserializationError(_) => Self::SchemaMismatch,
            _ => Self::Other,
        }
    }

    /// Compares with the server's English messages, without the names in them. Any other message is [`Kind::Other`].
    fn from_message(message: &str) -> Self {
        let is_about = |before: &str, after: &str| message.starts_with(before) && message.ends_with(after);
        match message {
            // A Citus coordinator sends the second message.
            "deadlock detected"
            | "canceling the transaction since it was involved in a distributed deadlock" => Self::Deadlock,
            "canceling statement due to lock timeout" => Self::LockTimeout,
            "canceling statement due to statement timeout" => Self::StatementTimeout,
            "current transaction is aborted, commands ignored until end of transaction block" => {
                Self::TransactionAborted
            }
            "cached plan must not change result type" => Self::PreparedStatementLost,
            // Diesel does not recognise every lost connection. It depends on how much libpq has read.
            _ if message.starts_with("server closed the connection unexpectedly\n") => Self::ConnectionLost,
            // A Citus coordinator lost the connection to a shard's server during the commit.
            _ if is_about("could not commit transaction for shard ", " on at least one active node") => {
                Self::CommitUnknown
            }
            _ if is_about("prepared statement \"", "\" does not exist")
                || is_about("prepared statement \"", "\" already exists")
                || message.starts_with("bind message supplies ") =>
            {
                Self::PreparedStatementLost
            }
            // A Rust string is valid UTF-8, so only a NUL byte can come from it. Other bytes come from the database.
            "invalid byte sequence for encoding \"UTF8\": 0x00" => Self::UnencodableText,
            _ if is_about("character with byte sequence ", "\"")
                && message.contains(" in encoding \"UTF8\" has no equivalent in encoding \"") =>
            {
                Self::UnencodableText
            }
            _ if message.starts_with("invalid byte sequence for encoding \"UTF8\": ")
                || is_about("character with byte sequence ", "\" has no equivalent in encoding \"UTF8\"") =>
            {
                Self::InvalidText
            }
            _ if is_about("relation \"", "\" does not exist")
                || is_about("column ", " does not exist")
                || is_about("column \"", "") && message.contains("\" is of type ")
                || message.starts_with("operator does not exist: ") =>
            {
                Self::SchemaMismatch
            }
            _ => Self::Other,
        }
    }

    pub(super) fn advice(&self) -> Advice {
        match self {
            Self::Deadlock | Self::SerializationFailure | Self::LockTimeout => Advice::RetryTransaction,
            Self::ReadOnly | Self::ConnectionLost | Self::PreparedStatementLost => Advice::Reconnect,
            Self::CommitUnknown => Advice::CheckOutcome,
            Self::StatementTimeout
            | Self::TransactionAborted
            | Self::UniqueViolation { .. }
            | Self::SchemaMismatch
            | Self::UnencodableText
            | Self::InvalidText
            | Self::Other => Advice::Fail,
        }
    }
}

/// The advice for a failed migration. Diesel's error type for migrations has no source, but its text ends with the
/// server's message.
pub(super) fn advice_on_migration(source: &(dyn std::error::Error + Send + Sync + 'static)) -> Advice {
    known_advice_on(source).unwrap_or_else(|| {
        let text = source.to_string();
        let message = text.split_once(" with: ").map_or("", |(_, message)| message);
        Kind::from_message(message).advice()
    })
}
