//! Sends the statements of the drivers. A driver must not call Diesel's own methods; `.clippy.toml` forbids them.
//!
//! Three things happen only here. A connection is marked as broken if the advice of an error requires another
//! connection. A change on a lost connection becomes `CommitUnknown` if it may have been committed. A read with a text
//! that no row can hold returns nothing.

use diesel::prelude::*;
use diesel::query_dsl::methods::{ExecuteDsl, LoadQuery};
use diesel::result::DatabaseErrorKind::UnableToSendCommand;
use diesel::result::Error as DieselError;

use crate::{Error, Result, session};

/// Sends a statement, once. `read_` is for statements that change no row; they may lock rows.
#[expect(clippy::disallowed_methods, reason = "this is the only place that may use them")]
pub(crate) trait RunStatement: RunQueryDsl<PgConnection> + Sized {
    fn read_all<'q, Row>(self, conn: &mut PgConnection) -> Result<Vec<Row>>
    where
        Self: LoadQuery<'q, PgConnection, Row>,
    {
        read(conn, |conn| self.load(conn))
    }

    fn read_one<'q, Row: Default>(self, conn: &mut PgConnection) -> Result<Row>
    where
        Self: LoadQuery<'q, PgConnection, Row>,
    {
        read(conn, |conn| self.get_result(conn))
    }

    fn read_optional<'q, Row>(self, conn: &mut PgConnection) -> Result<Option<Row>>
    where
        Self: LoadQuery<'q, PgConnection, Row>,
    {
        read(conn, |conn| self.get_result(conn).optional())
    }

    fn change_one<'q, Row>(self, conn: &mut PgConnection) -> Result<Row>
    where
        Self: LoadQuery<'q, PgConnection, Row>,
    {
        change(conn, |conn| self.get_result(conn))
    }

    fn change_optional<'q, Row>(self, conn: &mut PgConnection) -> Result<Option<Row>>
    where
        Self: LoadQuery<'q, PgConnection, Row>,
    {
        change(conn, |conn| self.get_result(conn).optional())
    }

    fn change_all<'q, Row>(self, conn: &mut PgConnection) -> Result<Vec<Row>>
    where
        Self: LoadQuery<'q, PgConnection, Row>,
    {
        change(conn, |conn| self.load(conn))
    }

    /// Returns the inserted rows. `recognise` may read the server's `DETAIL`, which other errors do not keep.
    fn insert<'q, Row>(
        self,
        conn: &mut PgConnection,
        recognise: impl FnOnce(&DieselError) -> Option<Error>,
    ) -> Result<Vec<Row>>
    where
        Self: LoadQuery<'q, PgConnection, Row>,
    {
        change_or(conn, |conn| self.load(conn), recognise)
    }

    /// Returns the number of changed rows.
    fn change(self, conn: &mut PgConnection) -> Result<usize>
    where
        Self: ExecuteDsl<PgConnection>,
    {
        change(conn, |conn| self.execute(conn))
    }
}

impl<Query: RunQueryDsl<PgConnection>> RunStatement for Query {}

/// Runs a statement that changes no row. If it searches for a text that no row can hold, the answer is empty.
pub(crate) fn read<T: Default>(
    conn: &mut PgConnection,
    send: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
) -> Result<T> {
    match send(conn).map_err(Error::from) {
        Err(Error::UnencodableText(_)) => Ok(T::default()),
        answer => answer.map_err(|error| mark_if_broken(conn, error)),
    }
}

/// Runs a change. Outside a transaction, the statement commits by itself. If the connection is lost after it was sent,
/// the change may or may not be committed.
fn change<T>(conn: &mut PgConnection, send: impl FnOnce(&mut PgConnection) -> QueryResult<T>) -> Result<T> {
    change_or(conn, send, |_| None)
}

fn change_or<T>(
    conn: &mut PgConnection,
    send: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
    recognise: impl FnOnce(&DieselError) -> Option<Error>,
) -> Result<T> {
    let commits_by_itself = !session::is_in_transaction(conn);
    send(conn).map_err(|error| {
        let was_sent = !matches!(error, DieselError::DatabaseError(UnableToSendCommand, _));
        mark_if_broken(
            conn,
            match recognise(&error).unwrap_or_else(|| error.into()) {
                Error::ConnectionLost(source) if commits_by_itself && was_sent => {
                    Error::CommitUnknown(source)
                }
                error => error,
            },
        )
    })
}

/// Marks the connection as broken if the error's advice is to take another one.
fn mark_if_broken(conn: &mut PgConnection, error: Error) -> Error {
    if error.advice().requires_another_connection() {
        session::mark_broken(conn);
    }
    error
}
