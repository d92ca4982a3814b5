//! A list of active keys that is worked off while it changes: its statement. Which lists there are is said in
//! `expiry.rs` and `unused.rs`.

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

/// The active keys of a tenant whose time is before a moment, in the order of that time and the id, behind a place.
///
/// The moment, the place and the limit stand in subselects, so that the server plans the statement once: see
/// `listing/statement.rs`.
pub(super) struct WorkedOff<'a> {
    columns: Columns,
    /// The time that the list is ordered by, as SQL.
    time: &'static str,
    tenant_id: &'a TenantId,
    before: Time,
    place: Option<(Time, &'a KeyId)>,
    limit: i64,
}

impl<'a> WorkedOff<'a> {
    pub(super) fn new(
        time: &'static str,
        tenant_id: &'a TenantId,
        before: Time,
        place: Option<(Time, &'a KeyId)>,
        limit: u32,
    ) -> Self {
        let columns = <KeySnapshot as Selectable<Pg>>::construct_selection();
        Self { columns, time, tenant_id, before, place, limit: limit.into() }
    }
}

impl QueryFragment<Pg> for WorkedOff<'_> {
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
        if let Some((at, id)) = &self.place {
            out.push_sql(&format!(r#" AND ({time}, "api_keys"."id") > ((SELECT "#));
            // A place whose time saturates: its key, while it exists, knows the time.
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

// Which time it is, and whether there is a place, makes another statement. The text tells them apart.
impl QueryId for WorkedOff<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for WorkedOff<'_> {
    type SqlType = SqlTypeOf<Columns>;
}

impl RunQueryDsl<PgConnection> for WorkedOff<'_> {}
