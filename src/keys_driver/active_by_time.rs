//! The statement that lists active keys in the order of a time. The methods are in `expiry.rs` and `unused.rs`.

use diesel::dsl::SqlTypeOf;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Text, Timestamptz};

use super::KeySnapshot;
use crate::time::Time;
use crate::{KeyId, KeyStatus, TenantId};

type Columns = <KeySnapshot as Selectable<Pg>>::SelectExpression;

static ACTIVE: KeyStatus = KeyStatus::Active;

/// Selects the active keys of a tenant whose `time` is earlier than `before`, in the order of that time and the id.
///
/// The values of the range and the limit are in subselects, so that the server plans the statement once: see
/// `listing/statement.rs`.
pub(super) struct SelectActiveByTime<'a> {
    columns: Columns,
    /// The SQL expression of the time that orders the list.
    time: &'static str,
    tenant_id: &'a TenantId,
    before: Time,
    after: Option<(Time, &'a KeyId)>,
    limit: i64,
}

impl<'a> SelectActiveByTime<'a> {
    pub(super) fn new(
        time: &'static str,
        tenant_id: &'a TenantId,
        before: Time,
        after: Option<(Time, &'a KeyId)>,
        limit: u32,
    ) -> Self {
        let columns = <KeySnapshot as Selectable<Pg>>::construct_selection();
        Self { columns, time, tenant_id, before, after, limit: limit.into() }
    }
}

impl QueryFragment<Pg> for SelectActiveByTime<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let time = self.time;
        out.push_sql("SELECT ");
        self.columns.walk_ast(out.reborrow())?;
        out.push_sql(r#" FROM "api_keys" WHERE "api_keys"."tenant_id" = "#);
        out.push_bind_param::<Text, _>(self.tenant_id)?;
        out.push_sql(r#" AND "api_keys"."status" = "#);
        out.push_bind_param::<Text, _>(ACTIVE.as_str())?;
        out.push_sql(&format!(" AND {time} < (SELECT "));
        out.push_bind_param::<Timestamptz, _>(&self.before)?;
        out.push_sql(")");
        if let Some((at, id)) = &self.after {
            out.push_sql(&format!(r#" AND ({time}, "api_keys"."id") > ((SELECT "#));
            // Rust cannot hold the exact time, so it is read from the key's row, if that still exists.
            if at.is_saturated() {
                out.push_sql(&format!(
                    r#"coalesce((SELECT {time} FROM "api_keys" WHERE "api_keys"."tenant_id" = "#
                ));
                out.push_bind_param::<Text, _>(self.tenant_id)?;
                out.push_sql(r#" AND "api_keys"."id" = "#);
                out.push_bind_param::<Text, _>(*id)?;
                out.push_sql("), ");
                out.push_bind_param::<Timestamptz, _>(at)?;
                out.push_sql(")");
            } else {
                out.push_bind_param::<Timestamptz, _>(at)?;
            }
            out.push_sql("), ");
            out.push_bind_param::<Text, _>(*id)?;
            out.push_sql(")");
        }
        out.push_sql(&format!(r#" ORDER BY {time}, "api_keys"."id" LIMIT (SELECT "#));
        out.push_bind_param::<BigInt, _>(&self.limit)?;
        out.push_sql(")");
        Ok(())
    }
}

// The SQL text depends on the expression of the time and on the cursor, so Diesel caches the statement by its text.
impl QueryId for SelectActiveByTime<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for SelectActiveByTime<'_> {
    type SqlType = SqlTypeOf<Columns>;
}

impl RunQueryDsl<PgConnection> for SelectActiveByTime<'_> {}
