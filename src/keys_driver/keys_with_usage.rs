use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::dsl::SqlTypeOf;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Nullable, Numeric, Text, Timestamptz};

use super::listed_key::ListedKey;
use super::{KeySnapshot, KeyUsageSnapshot, KeysDriver};
use crate::listing::{AtNewest, NewestFirst, Skipping};
use crate::schema::api_keys;
use crate::{Page, Result, TenantId};

impl KeysDriver<'_> {
    /// Fetches a page of the tenant's keys, each with what its calls since a moment add up to.
    ///
    /// The keys are those of [`fetch_keys`](Self::fetch_keys), the sums those of
    /// [`fetch_key_usage`](Self::fetch_key_usage), and both are of one moment: one statement answers.
    pub fn fetch_keys_with_usage(
        &mut self,
        tenant_id: &TenantId,
        page: Page,
        since: DateTime<Utc>,
    ) -> Result<Vec<(KeySnapshot, KeyUsageSnapshot)>> {
        let columns = <ListedKey as Selectable<Pg>>::construct_selection();
        let scope = api_keys::tenant_id.eq(tenant_id);
        let rows: Vec<(ListedKey, i64, Option<BigDecimal>)> = match page.offset {
            0 => {
                let keys = NewestFirst::new(columns, scope, AtNewest, page.limit);
                WithUsage { keys, tenant_id, since }.load(self.conn)
            }
            offset => {
                let keys = NewestFirst::new(columns, scope, Skipping::rows(offset), page.limit);
                WithUsage { keys, tenant_id, since }.load(self.conn)
            }
        }?;
        let keys = rows.into_iter().map(|(key, request_count, spend_cents)| {
            (
                key.of(tenant_id),
                KeyUsageSnapshot { request_count, spend_cents: spend_cents.unwrap_or_default() },
            )
        });
        Ok(keys.collect())
    }
}

/// A page of keys and the usage of each.
///
/// Written by hand, because Diesel has no `LATERAL`: both sums come from one scan of a key's calls.
struct WithUsage<'a, Scope, Start> {
    keys: NewestFirst<KeyColumns, Scope, Start>,
    tenant_id: &'a TenantId,
    since: DateTime<Utc>,
}

type KeyColumns = <ListedKey as Selectable<Pg>>::SelectExpression;

impl<Scope, Start> QueryFragment<Pg> for WithUsage<'_, Scope, Start>
where
    NewestFirst<KeyColumns, Scope, Start>: QueryFragment<Pg>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT ");
        self.keys.columns.walk_ast(out.reborrow())?;
        out.push_sql(r#", "calls"."count", "calls"."sum" FROM ("#);
        self.keys.walk_ast(out.reborrow())?;
        out.push_sql(r#") AS "api_keys" CROSS JOIN LATERAL (SELECT count(*), sum("cost_cents")"#);
        out.push_sql(r#" FROM "proxy_calls" WHERE "proxy_calls"."tenant_id" = "#);
        out.push_bind_param::<Text, _>(self.tenant_id)?;
        out.push_sql(r#" AND "proxy_calls"."api_key_id" = "api_keys"."id""#);
        out.push_sql(r#" AND "proxy_calls"."created_at" >= "#);
        out.push_bind_param::<Timestamptz, _>(&self.since)?;
        out.push_sql(r#") AS "calls" ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC"#);
        Ok(())
    }
}

impl<Scope: QueryId, Start: QueryId> QueryId for WithUsage<'_, Scope, Start> {
    type QueryId = WithUsage<'static, Scope::QueryId, Start::QueryId>;
    const HAS_STATIC_QUERY_ID: bool = Scope::HAS_STATIC_QUERY_ID && Start::HAS_STATIC_QUERY_ID;
}

impl<Scope, Start> Query for WithUsage<'_, Scope, Start> {
    type SqlType = (SqlTypeOf<KeyColumns>, BigInt, Nullable<Numeric>);
}

impl<Scope, Start> RunQueryDsl<PgConnection> for WithUsage<'_, Scope, Start> {}
