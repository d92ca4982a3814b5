//! A tenant's keys as a list: newest first, a page at a time, and counted.

mod count;
mod page;

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::BigInt;

pub(crate) use self::count::{Count, CountUpTo};
pub(crate) use self::page::{AtNewest, NewestFirst, Skipping, fetch_after, fetch_page};

/// True of every key, and not known to be: how a statement of this module is planned once.
///
/// From its sixth execution on, a prepared statement keeps one plan for all values, but only if the
/// server reckons it no dearer than those it made for the values at hand. It reckons an unknown
/// `LIMIT` as a tenth of an average tenant, so a small page of a large tenant would be planned anew
/// at each call, which takes as long as reading it. What stands in a subselect is unknown to both
/// plans, and two unknown ends of a range are reckoned as a two-hundredth of whatever the tenant has.
/// So both plans look alike, small, and made for the index in the order of the page.
const AT_ANY_TIME: &str = r#" AND "api_keys"."created_at" BETWEEN (SELECT timestamptz '-infinity') AND (SELECT timestamptz 'infinity')"#;

/// Pushes `FROM api_keys WHERE <scope>`.
fn push_source<'b>(scope: &'b impl QueryFragment<Pg>, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
    out.push_sql(r#" FROM "api_keys" WHERE "#);
    scope.walk_ast(out.reborrow())?;
    out.push_sql(AT_ANY_TIME);
    Ok(())
}

/// A number of rows that the planner does not see.
#[derive(QueryId)]
struct Unseen(i64);

impl Unseen {
    fn new(rows: u32) -> Self {
        Self(rows.into())
    }
}

impl QueryFragment<Pg> for Unseen {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("(SELECT ");
        out.push_bind_param::<BigInt, _>(&self.0)?;
        out.push_sql(")");
        Ok(())
    }
}
