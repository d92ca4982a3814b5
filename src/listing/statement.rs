//! The statements of a list: a page and the counts. Their conditions are in `scope.rs` and `start.rs`.
//!
//! They are written by hand, because Diesel can neither compare rows nor use a subselect as a limit. Diesel checks the
//! columns and the conditions of the scope.

use diesel::dsl::SqlTypeOf;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::BigInt;

use super::Listing;
use super::scope::Scope;

/// A condition that is true for every key, but whose values the planner does not know. With it, the server plans a
/// statement once.
///
/// A prepared statement can have a generic plan for all values, or a custom plan for the values of one execution. From
/// the sixth execution on, the server keeps the generic plan, but only if its estimated cost is not higher than that of
/// the custom plans. The server estimates an unknown `LIMIT` as a tenth of an average tenant's keys. So a small page of
/// a large tenant would get a custom plan for each execution, and planning takes as long as reading the page.
///
/// A value in a subselect is unknown to both kinds of plans. The server estimates a range with two unknown ends as a
/// two-hundredth of the tenant's keys. So both plans have the same small cost, and both use the index in the order of
/// the page.
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

/// A number of rows whose value the planner does not know. See [`AT_ANY_TIME`].
pub(super) struct OpaqueNumber(i64);

impl OpaqueNumber {
    pub(super) fn new(number: u32) -> Self {
        Self(number.into())
    }

    pub(super) fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("(SELECT ");
        out.push_bind_param::<BigInt, _>(&self.0)?;
        out.push_sql(")");
        Ok(())
    }
}

/// Selects the keys of a list.
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

/// Counts the keys of a scope.
pub(super) struct CountKeys<'a>(pub(super) Scope<'a>);

impl QueryFragment<Pg> for CountKeys<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT count(*)");
        push_source(&self.0, &mut out)
    }
}

/// Counts the keys of a scope, and stops at `bound`.
pub(super) struct CountKeysUpTo<'a> {
    pub(super) scope: Scope<'a>,
    pub(super) bound: OpaqueNumber,
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

/// No static id, because the SQL has several forms. [`Listing::load`] gives each form its own type.
impl<Columns> QueryId for SelectKeys<'_, Columns> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}
