//! Keeps prepared what Diesel would parse and plan at each call.

use std::any::Any;
use std::marker::PhantomData;

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};

/// A statement that is prepared once a connection, although Diesel would parse and plan it at each call.
///
/// Diesel caches no `UPDATE`, because the SQL of one may depend on its values (an `Option` in a
/// changeset leaves its column out). `Statement`, a type of the call site's own, is the promise that
/// this one's does not: the prepared statement is found again by it.
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
