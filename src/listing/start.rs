//! Where a page of a list starts. Which keys the list holds is in `scope.rs`.

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel::sql_types::{Text, Timestamptz};

use super::scope::Scope;
use super::statement::{NEWEST_FIRST, OpaqueNumber, push_source};
use crate::KeyCursor;
use crate::time::Time;

pub(super) enum Start<'a> {
    /// At the newest key.
    Newest,
    /// After this number of keys. The server skips them in the index and does not read their rows.
    Skipping(OpaqueNumber),
    /// After a cursor.
    After(Time, &'a KeyCursor),
    /// After a cursor whose time is beyond Rust's range. The exact time is read from the key's row, if it still exists.
    AfterKey(Time, &'a KeyCursor),
}

impl<'a> Start<'a> {
    pub(super) fn skipping(rows: u32) -> Self {
        if rows == 0 { Self::Newest } else { Self::Skipping(OpaqueNumber::new(rows)) }
    }

    pub(super) fn after(cursor: Option<&'a KeyCursor>) -> Self {
        let Some(cursor) = cursor else { return Self::Newest };
        let time = Time::from(cursor.created_at);
        if time.is_saturated() { Self::AfterKey(time, cursor) } else { Self::After(time, cursor) }
    }

    /// Pushes the condition that the start adds to the condition of the scope.
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
