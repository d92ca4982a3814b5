//! Where in a list a page starts.

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel::sql_types::{Text, Timestamptz};

use super::scope::Scope;
use super::statement::{NEWEST_FIRST, Unseen, push_source};
use crate::KeyCursor;
use crate::time::Time;

pub(super) enum Start<'a> {
    /// At the newest key.
    Newest,
    /// At the key that this many others precede. The server passes over those within the index, unread.
    Skipping(Unseen),
    /// Behind the place of a cursor.
    After(Time, &'a KeyCursor),
    /// Behind the place of a cursor whose time saturates: its key, while it exists, knows the time.
    AfterKey(Time, &'a KeyCursor),
}

impl<'a> Start<'a> {
    pub(super) fn skipping(rows: u32) -> Self {
        if rows == 0 { Self::Newest } else { Self::Skipping(Unseen::rows(rows)) }
    }

    pub(super) fn after(cursor: Option<&'a KeyCursor>) -> Self {
        let Some(cursor) = cursor else { return Self::Newest };
        let time = Time::from(cursor.created_at);
        if time.is_saturated() { Self::AfterKey(time, cursor) } else { Self::After(time, cursor) }
    }

    /// Pushes what the start adds to the condition of a scope.
    pub(super) fn walk_ast<'b>(
        &'b self,
        scope: &'b Scope<'_>,
        mut out: AstPass<'_, 'b, Pg>,
    ) -> QueryResult<()> {
        match self {
            Self::Newest => {}
            Self::Skipping(rows) => {
                out.push_sql(r#" AND ("api_keys"."created_at", "api_keys"."id") <= (SELECT "api_keys"."created_at", "api_keys"."id""#);
                push_source(scope, &mut out)?;
                out.push_sql(NEWEST_FIRST);
                out.push_sql("1 OFFSET ");
                rows.walk_ast(out.reborrow())?;
                out.push_sql(")");
            }
            Self::After(time, cursor) => {
                out.push_sql(r#" AND ("api_keys"."created_at", "api_keys"."id") < ("#);
                out.push_bind_param::<Timestamptz, _>(time)?;
                out.push_sql(", ");
                out.push_bind_param::<Text, _>(&cursor.id)?;
                out.push_sql(")");
            }
            Self::AfterKey(time, cursor) => {
                out.push_sql(r#" AND ("api_keys"."created_at", "api_keys"."id") < (coalesce((SELECT "api_keys"."created_at" FROM "api_keys" WHERE "#);
                scope.walk_ast(out.reborrow())?;
                out.push_sql(r#" AND "api_keys"."id" = "#);
                out.push_bind_param::<Text, _>(&cursor.id)?;
                out.push_sql("), ");
                out.push_bind_param::<Timestamptz, _>(time)?;
                out.push_sql("), ");
                out.push_bind_param::<Text, _>(&cursor.id)?;
                out.push_sql(")");
            }
        }
        Ok(())
    }
}
