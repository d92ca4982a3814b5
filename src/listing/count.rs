use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::BigInt;

use super::{Unseen, push_source};

/// The number of a scope's keys.
///
/// Written by hand for the sake of its plan: see [`AT_ANY_TIME`](super::AT_ANY_TIME).
#[derive(QueryId)]
pub(crate) struct Count<Scope>(pub(crate) Scope);

impl<Scope: QueryFragment<Pg>> QueryFragment<Pg> for Count<Scope> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT count(*)");
        push_source(&self.0, &mut out)
    }
}

impl<Scope> Query for Count<Scope> {
    type SqlType = BigInt;
}

impl<Scope> RunQueryDsl<PgConnection> for Count<Scope> {}

/// The number of a scope's keys, counted no further than a bound.
///
/// Written by hand, because Diesel selects from no subselect.
#[derive(QueryId)]
pub(crate) struct CountUpTo<Scope> {
    scope: Scope,
    bound: Unseen,
}

impl<Scope> CountUpTo<Scope> {
    pub(crate) fn new(scope: Scope, bound: u32) -> Self {
        Self { scope, bound: Unseen::new(bound) }
    }
}

impl<Scope: QueryFragment<Pg>> QueryFragment<Pg> for CountUpTo<Scope> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT count(*) FROM (SELECT");
        push_source(&self.scope, &mut out)?;
        out.push_sql(" LIMIT ");
        self.bound.walk_ast(out.reborrow())?;
        out.push_sql(") AS counted");
        Ok(())
    }
}

impl<Scope> Query for CountUpTo<Scope> {
    type SqlType = BigInt;
}

impl<Scope> RunQueryDsl<PgConnection> for CountUpTo<Scope> {}
