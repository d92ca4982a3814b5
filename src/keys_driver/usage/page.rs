//! Reads a page of keys, each with its usage.

use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::dsl::SqlTypeOf;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Bool, Nullable, Numeric, Text, Timestamptz};

use super::sql::{bucket_sums, call_sums, edges, progress, since_columns, since_edge, since_sums, start_of};
use super::{KeyUsageSnapshot, Sums};
use crate::keys_driver::listed_key::ListedKey;
use crate::keys_driver::{KeySnapshot, KeysDriver};
use crate::listing::{Listing, SelectKeys};
use crate::send::RunStatement;
use crate::time::Time;
use crate::{Page, Result, TenantId};

impl KeysDriver<'_> {
    /// Fetches a page of the tenant's keys, each with what its calls since a moment add up to.
    ///
    /// The keys are those of [`fetch_keys`](Self::fetch_keys), the sums those of
    /// [`fetch_key_usage`](Self::fetch_key_usage), and both are of one moment: one statement answers.
    ///
    /// # Errors
    ///
    /// [`Error::CostNotANumber`](crate::Error::CostNotANumber) names a key of the page, if a call of the range
    /// has such a cost.
    pub fn fetch_keys_with_usage(
        &mut self,
        tenant_id: &TenantId,
        since: DateTime<Utc>,
        page: Page,
    ) -> Result<Vec<(KeySnapshot, KeyUsageSnapshot)>> {
        let keys = Listing::all(tenant_id).page(page).select::<ListedKey>();
        let rows: Vec<(ListedKey, i64, Option<BigDecimal>, bool)> =
            WithUsage { keys, tenant_id, since: since.into() }.read_all(self.conn)?;
        rows.into_iter()
            .map(|(key, calls, spend, is_rounded)| {
                let key = key.into_snapshot(tenant_id);
                let usage = Sums { calls, spend, is_rounded }.of_key(tenant_id, &key.id)?;
                Ok((key, usage))
            })
            .collect()
    }
}

/// A page of keys and the usage of each.
struct WithUsage<'a> {
    keys: SelectKeys<'a, KeyColumns>,
    tenant_id: &'a TenantId,
    since: Time,
}

type KeyColumns = <ListedKey as Selectable<Pg>>::SelectExpression;

impl QueryFragment<Pg> for WithUsage<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "asked" AS (SELECT "#);
        out.push_bind_param::<Text, _>(self.tenant_id)?;
        out.push_sql(r#"::text AS "tenant_id", "#);
        out.push_bind_param::<Timestamptz, _>(&self.since)?;
        out.push_sql(concat!(r#"::timestamptz AS "since"), "#, since_edge!(), " SELECT "));
        self.keys.columns.walk_ast(out.reborrow())?;
        out.push_sql(concat!(", ", since_columns!(), " FROM ("));
        self.keys.walk_ast(out.reborrow())?;
        out.push_sql(concat!(
            r#") AS "api_keys" CROSS JOIN "days""#,
            since_sums!(
                of_a_key,
                "usage_key_buckets",
                r#""tenant_id" = $1 AND "api_key_id" = "api_keys"."id""#
            ),
            r#" ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC"#
        ));
        Ok(())
    }
}

impl QueryId for WithUsage<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for WithUsage<'_> {
    type SqlType = (SqlTypeOf<KeyColumns>, BigInt, Nullable<Numeric>, Bool);
}

impl RunQueryDsl<PgConnection> for WithUsage<'_> {}
