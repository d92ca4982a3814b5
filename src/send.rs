//! How the drivers send a statement. Each of their calls passes here, and none may use Diesel's own methods
//! (`.clippy.toml` forbids them). Only here is a connection marked that an error condemns, a change whose
//! outcome is open told from one that is undone, and a text that no row can hold answered with nothing.

use diesel::prelude::*;
use diesel::query_dsl::methods::{ExecuteDsl, LoadQuery};
use diesel::result::DatabaseErrorKind::UnableToSendCommand;
use diesel::result::Error as DieselError;

use crate::{Error, Result, session};

/// Sends a statement, once. `read_` is for what changes nothing, or only within a transaction.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
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

    /// Returns the inserted rows. `named` may name an error from what the server said of a row, which is not kept.
    fn insert<'q, Row>(
        self,
        conn: &mut PgConnection,
        named: impl FnOnce(&DieselError) -> Option<Error>,
    ) -> Result<Vec<Row>>
    where
        Self: LoadQuery<'q, PgConnection, Row>,
    {
        change_or(conn, |conn| self.load(conn), named)
    }

    /// Returns how many rows were changed.
    fn change(self, conn: &mut PgConnection) -> Result<usize>
    where
        Self: ExecuteDsl<PgConnection>,
    {
        change(conn, |conn| self.execute(conn))
    }
}

impl<Query: RunQueryDsl<PgConnection>> RunStatement for Query {}

/// Runs what changes nothing, or only within a transaction. What is asked for by a text that no row can
/// hold is not there.
pub(crate) fn read<T: Default>(
    conn: &mut PgConnection,
    send: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
) -> Result<T> {
    match send(conn).map_err(Error::from) {
        Err(Error::UnencodableText(_)) => Ok(T::default()),
        answer => answer.map_err(|error| condemning(conn, error)),
    }
}

/// Runs a change. Outside a transaction it commits by itself, so a connection that is lost after the
/// statement was sent leaves open whether it happened.
fn change<T>(conn: &mut PgConnection, send: impl FnOnce(&mut PgConnection) -> QueryResult<T>) -> Result<T> {
    change_or(conn, send, |_| None)
}

fn change_or<T>(
    conn: &mut PgConnection,
    send: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
    named: impl FnOnce(&DieselError) -> Option<Error>,
) -> Result<T> {
    let commits_by_itself = !session::is_in_transaction(conn);
    send(conn).map_err(|error| {
        let was_sent = !matches!(error, DieselError::DatabaseError(UnableToSendCommand, _));
        condemning(
            conn,
            match named(&error).unwrap_or_else(|| error.into()) {
                Error::ConnectionLost(source) if commits_by_itself && was_sent => {
                    Error::CommitUnknown(source)
                }
                error => error,
            },
        )
    })
}

/// Marks the connection if the error's advice is to take another.
fn condemning(conn: &mut PgConnection, error: Error) -> Error {
    if error.advice().requires_another_connection() {
        session::condemn(conn);
    }
    error
}
