//! Lets Diesel cache prepared statements that it does not cache by itself.

use std::any::Any;
use std::marker::PhantomData;

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};

/// A statement that each connection prepares once, although Diesel by itself would prepare it for each execution.
///
/// Diesel does not cache an `UPDATE`, because its SQL may depend on its values: an `Option` in a changeset may leave
/// out a column. With `Statement`, the caller promises that the SQL is always the same. `Statement` must be a type that
/// only this statement uses, because Diesel finds the prepared statement by it.
pub(crate) struct Prepared<Statement, Q> {
    query: Q,
    statement: PhantomData<Statement>,
}

impl<Statement, Q> Prepared<Statement, Q> {
    pub(crate) fn new(query: Q) -> Self {
        Self { query, statement: PhantomData }
    }
}

impl<Statement: Any, Q> QueryId for Prepared<Statement, Q> {
    type QueryId = Statement;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<Statement, Q: Query> Query for Prepared<Statement, Q> {
    type SqlType = Q::SqlType;
}

impl<Statement, Q> RunQueryDsl<PgConnection> for Prepared<Statement, Q> {}

impl<Statement, Q: QueryFragment<Pg>> QueryFragment<Pg> for Prepared<Statement, Q> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.query.walk_ast(out)
    }

    fn is_safe_to_cache_prepared(&self, _: &Pg) -> QueryResult<bool> {
        Ok(true)
    }
}

/// Implements the traits with which Diesel sends a statement and finds it prepared by its type. The SQL must always be
/// the same.
macro_rules! prepared {
    ($Statement:ident => $SqlType:ty) => {
        prepared!($Statement, $Statement => $SqlType);
    };
    ($Statement:ident<'_> => $SqlType:ty) => {
        prepared!($Statement<'_>, $Statement<'static> => $SqlType);
    };
    ($Statement:ty, $Static:ty => $SqlType:ty) => {
        impl diesel::query_builder::QueryId for $Statement {
            type QueryId = $Static;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl diesel::query_builder::Query for $Statement {
            type SqlType = $SqlType;
        }

        impl diesel::RunQueryDsl<diesel::PgConnection> for $Statement {}
    };
}

pub(crate) use prepared;
