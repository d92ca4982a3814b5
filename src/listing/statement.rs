//! The statements of a list: its page and its counts. They are written by hand, because Diesel neither
//! compares rows nor takes a subselect as a limit; conditions and columns are Diesel's, and checked.

use diesel::dsl::SqlTypeOf;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::BigInt;

use super::Listing;
use super::scope::Scope;

/// A condition that every key meets and the planner cannot see through, so that the server plans a
/// statement once.
///
/// From its sixth execution on, a prepared statement keeps one plan for all values, but only if the
/// server estimates its cost no higher than that of plans for the values at hand. The server estimates an
/// unknown `LIMIT` as a tenth of an average tenant, so a small page of a large tenant would be planned
/// at each call, which takes as long as reading it. What stands in a subselect is unknown to both
/// plans, and two unknown ends of a range are estimated as a two-hundredth of the tenant's rows.
/// So both plans look alike, small, and made for the index in the order of the page.
const AT_ANY_TIME: &str = r#" AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')"#;

pub(super) const NEWEST_FIRST: &str =
    r#" ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC LIMIT "#;

/// Pushes `FROM api_keys WHERE <scope>`.
pub(super) fn push_source<'b>(scope: &'b Scope<'_>, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
    out.push_sql(r#" FROM "api_keys" WHERE "#);
    scope.walk_ast(out.reborrow())?;
    out.push_sql(AT_ANY_TIME);
    Ok(())
}

/// A number of rows that the planner does not see.
pub(super) struct Unseen(i64);

impl Unseen {
    pub(super) fn rows(rows: u32) -> Self {
        Self(rows.into())
    }

    pub(super) fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("(SELECT ");
        out.push_bind_param::<BigInt, _>(&self.0)?;
        out.push_sql(")");
        Ok(())
    }
}

/// The keys of a list.
pub(crate) struct SelectKeys<'a, Columns> {
    pub(crate) columns: Columns,
    pub(super) listing: Listing<'a>,
}

impl<Columns: QueryFragment<Pg>> QueryFragment<Pg> for SelectKeys<'_, Columns> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let Listing { scope, start, limit } = &self.listing;
        out.push_sql("SELECT ");
        self.columns.walk_ast(out.reborrow())?;
        push_source(scope, &mut out)?;
        start.walk_ast(scope, out.reborrow())?;
        out.push_sql(NEWEST_FIRST);
        limit.walk_ast(out)
    }
}

impl<Columns: Expression> Query for SelectKeys<'_, Columns> {
    type SqlType = SqlTypeOf<Columns>;
}

/// The number of keys of a scope.
pub(super) struct CountKeys<'a>(pub(super) Scope<'a>);

impl QueryFragment<Pg> for CountKeys<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT count(*)");
        push_source(&self.0, &mut out)
    }
}

/// The number of keys of a scope, counted no further than a bound.
pub(super) struct CountKeysUpTo<'a> {
    pub(super) scope: Scope<'a>,
    pub(super) bound: Unseen,
}

impl QueryFragment<Pg> for CountKeysUpTo<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT count(*) FROM (SELECT");
        push_source(&self.scope, &mut out)?;
        out.push_sql(" LIMIT ");
        self.bound.walk_ast(out.reborrow())?;
        out.push_sql(") AS counted");
        Ok(())
    }
}

impl Query for CountKeys<'_> {
    type SqlType = BigInt;
}

impl Query for CountKeysUpTo<'_> {
    type SqlType = BigInt;
}

/// Found by its SQL, unless it is sent by [`Listing::load`].
impl<Columns> QueryId for SelectKeys<'_, Columns> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}
