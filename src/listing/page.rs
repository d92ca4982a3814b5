use diesel::dsl::SqlTypeOf;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::query_dsl::methods::LoadQuery;
use diesel::sql_types::{Text, Timestamptz};

use super::{Unseen, push_source};
use crate::{KeyCursor, Page, Result};

/// Fetches a page of the scope's keys.
pub(crate) fn fetch_page<'q, Row, Scope, Key>(
    conn: &mut PgConnection,
    scope: Scope,
    page: Page,
    read: impl Fn(Row) -> Key,
) -> Result<Vec<Key>>
where
    Row: Selectable<Pg>,
    NewestFirst<Row::SelectExpression, Scope, AtNewest>: LoadQuery<'q, PgConnection, Row>,
    NewestFirst<Row::SelectExpression, Scope, Skipping>: LoadQuery<'q, PgConnection, Row>,
{
    let columns = Row::construct_selection();
    match page.offset {
        0 => collect(NewestFirst::new(columns, scope, AtNewest, page.limit).load_iter(conn)?, read),
        offset => {
            let start = Skipping::rows(offset);
            collect(NewestFirst::new(columns, scope, start, page.limit).load_iter(conn)?, read)
        }
    }
}

/// Fetches the scope's keys behind a cursor, or the newest.
pub(crate) fn fetch_after<'q, Row, Scope, Key>(
    conn: &mut PgConnection,
    scope: Scope,
    cursor: Option<&'q KeyCursor>,
    limit: u32,
    read: impl Fn(Row) -> Key,
) -> Result<Vec<Key>>
where
    Row: Selectable<Pg>,
    NewestFirst<Row::SelectExpression, Scope, AtNewest>: LoadQuery<'q, PgConnection, Row>,
    NewestFirst<Row::SelectExpression, Scope, After<'q>>: LoadQuery<'q, PgConnection, Row>,
{
    let columns = Row::construct_selection();
    match cursor {
        None => collect(NewestFirst::new(columns, scope, AtNewest, limit).load_iter(conn)?, read),
        Some(cursor) => {
            collect(NewestFirst::new(columns, scope, After(cursor), limit).load_iter(conn)?, read)
        }
    }
}

/// Collects the rows in one allocation: unlike Diesel's `load`, which forgets how many there are.
pub(crate) fn collect<Row, Key>(
    rows: impl Iterator<Item = QueryResult<Row>>,
    read: impl Fn(Row) -> Key,
) -> Result<Vec<Key>> {
    let mut keys = Vec::with_capacity(rows.size_hint().0);
    for row in rows {
        keys.push(read(row?));
    }
    Ok(keys)
}

/// At most `limit` keys of a scope from some start, newest first.
///
/// Written by hand, because Diesel neither compares rows nor takes a subselect as a limit. The columns
/// are those of a snapshot, and the scope is a condition: both are Diesel's, and checked.
#[derive(QueryId)]
pub(crate) struct NewestFirst<Columns, Scope, Start> {
    pub(crate) columns: Columns,
    scope: Scope,
    start: Start,
    limit: Unseen,
}

/// At the newest key.
#[derive(QueryId)]
pub(crate) struct AtNewest;

/// At the key that so many others are newer than. Those are passed over within the index, unread.
#[derive(QueryId)]
pub(crate) struct Skipping(Unseen);

/// Behind the cursor's place.
pub(crate) struct After<'a>(&'a KeyCursor);

impl QueryId for After<'_> {
    type QueryId = After<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Skipping {
    pub(crate) fn rows(offset: u32) -> Self {
        Self(Unseen::new(offset))
    }
}

impl<Columns, Scope, Start> NewestFirst<Columns, Scope, Start> {
    pub(crate) fn new(columns: Columns, scope: Scope, start: Start, limit: u32) -> Self {
        Self { columns, scope, start, limit: Unseen::new(limit) }
    }
}

/// Pushes what a start adds to the scope.
pub(crate) trait PushStart<Scope> {
    fn push<'b>(&'b self, scope: &'b Scope, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()>;
}

impl<Scope> PushStart<Scope> for AtNewest {
    fn push<'b>(&'b self, _: &'b Scope, _: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        Ok(())
    }
}

impl<Scope: QueryFragment<Pg>> PushStart<Scope> for Skipping {
    fn push<'b>(&'b self, scope: &'b Scope, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#" AND ("api_keys"."created_at", "api_keys"."id") <= (SELECT "api_keys"."created_at", "api_keys"."id""#);
        push_source(scope, out)?;
        out.push_sql(NEWEST_FIRST);
        out.push_sql("1 OFFSET ");
        self.0.walk_ast(out.reborrow())?;
        out.push_sql(")");
        Ok(())
    }
}

impl<Scope> PushStart<Scope> for After<'_> {
    fn push<'b>(&'b self, _: &'b Scope, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#" AND ("api_keys"."created_at", "api_keys"."id") < ("#);
        out.push_bind_param::<Timestamptz, _>(&self.0.created_at)?;
        out.push_sql(", ");
        out.push_bind_param::<Text, _>(&self.0.id)?;
        out.push_sql(")");
        Ok(())
    }
}

const NEWEST_FIRST: &str = r#" ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC LIMIT "#;

impl<Columns, Scope, Start> QueryFragment<Pg> for NewestFirst<Columns, Scope, Start>
where
    Columns: QueryFragment<Pg>,
    Scope: QueryFragment<Pg>,
    Start: PushStart<Scope>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT ");
        self.columns.walk_ast(out.reborrow())?;
        push_source(&self.scope, &mut out)?;
        self.start.push(&self.scope, &mut out)?;
        out.push_sql(NEWEST_FIRST);
        self.limit.walk_ast(out)
    }
}

impl<Columns: Expression, Scope, Start> Query for NewestFirst<Columns, Scope, Start> {
    type SqlType = SqlTypeOf<Columns>;
}

impl<Columns, Scope, Start> RunQueryDsl<PgConnection> for NewestFirst<Columns, Scope, Start> {}
