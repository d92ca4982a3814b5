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
    /// Fetches a page of the tenant's keys, each with its usage since a time.
    ///
    /// The keys are those of [`fetch_keys`](Self::fetch_keys), and the sums are those of
    /// [`fetch_key_usage`](Self::fetch_key_usage). One statement reads both, in one snapshot.
    ///
    /// # Errors
    ///
    /// [`Error::CostNotANumber`](crate::Error::CostNotANumber) if the cost of a call of a listed key is `NaN`. It names
    /// the key.
    pub fn fetch_keys_with_usage(
        &mut self,
        tenant_id: &TenantId,
        since: DateTime<Utc>,
        page: Page,
    ) -> Result<Vec<(KeySnapshot, KeyUsageSnapshot)>> {
        let keys = Listing::all(tenant_id).page(page).select::<ListedKey>();
        let since = since.into();
        let rows: Vec<(ListedKey, i64, Option<BigDecimal>, bool)> = if page.offset == 0 {
            WithUsage::<NEWEST> { keys, tenant_id, since }.read_all(self.conn)?
        } else {
            WithUsage::<SKIPPING> { keys, tenant_id, since }.read_all(self.conn)?
        };
        rows.into_iter()
            .map(|(key, calls, spend, is_rounded)| {
                let key = key.into_snapshot(tenant_id);
                let usage = Sums { calls, spend, is_rounded }.of_key(tenant_id, &key.id)?;
                Ok((key, usage))
            })
            .collect()
    }
}

/// The two forms of the page's SQL.
const NEWEST: u8 = 0;
const SKIPPING: u8 = 1;

/// A page of keys and the usage of each. The type names the form of the page, so that Diesel finds the prepared statement
/// without building its SQL.
struct WithUsage<'a, const FORM: u8> {
    keys: SelectKeys<'a, KeyColumns>,
    tenant_id: &'a TenantId,
    since: Time,
}

type KeyColumns = <ListedKey as Selectable<Pg>>::SelectExpression;

impl<const FORM: u8> QueryFragment<Pg> for WithUsage<'_, FORM> {
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

impl<const FORM: u8> QueryId for WithUsage<'_, FORM> {
    type QueryId = WithUsage<'static, FORM>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<const FORM: u8> Query for WithUsage<'_, FORM> {
    type SqlType = (SqlTypeOf<KeyColumns>, BigInt, Nullable<Numeric>, Bool);
}

impl<const FORM: u8> RunQueryDsl<PgConnection> for WithUsage<'_, FORM> {}
