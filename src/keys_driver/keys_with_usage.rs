//! A page of keys, each with its usage.

use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::dsl::SqlTypeOf;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Nullable, Numeric, Text, Timestamptz};

use super::listed_key::ListedKey;
use super::{KeySnapshot, KeyUsageSnapshot, KeysDriver};
use crate::listing::{Listing, SelectKeys};
use crate::send::RunStatement;
use crate::time::Time;
use crate::{Page, Result, TenantId};

impl KeysDriver<'_> {
    /// Fetches a page of the tenant's keys, each with what its calls since a moment add up to.
    ///
    /// The keys are those of [`fetch_keys`](Self::fetch_keys), the sums those of
    /// [`fetch_key_usage`](Self::fetch_key_usage), and both are of one moment: one statement answers.
    pub fn fetch_keys_with_usage(
        &mut self,
        tenant_id: &TenantId,
        since: DateTime<Utc>,
        page: Page,
    ) -> Result<Vec<(KeySnapshot, KeyUsageSnapshot)>> {
        let keys = Listing::all(tenant_id).page(page).select::<ListedKey>();
        let rows: Vec<(ListedKey, i64, Option<BigDecimal>)> =
            WithUsage { keys, tenant_id, since: since.into() }.read_all(self.conn)?;
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
struct WithUsage<'a> {
    keys: SelectKeys<'a, KeyColumns>,
    tenant_id: &'a TenantId,
    since: Time,
}

type KeyColumns = <ListedKey as Selectable<Pg>>::SelectExpression;

impl QueryFragment<Pg> for WithUsage<'_> {
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

impl QueryId for WithUsage<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for WithUsage<'_> {
    type SqlType = (SqlTypeOf<KeyColumns>, BigInt, Nullable<Numeric>);
}

impl RunQueryDsl<PgConnection> for WithUsage<'_> {}
