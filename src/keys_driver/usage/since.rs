//! The usage of a key or of a tenant since a time.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel::sql_types::{Text, Timestamptz};

use super::sql::{bucket_sums, call_sums, edges, progress, since_columns, since_edge, since_sums, start_of};
use super::{KeyUsageSnapshot, SumTypes, Sums};
use crate::keys_driver::KeysDriver;
use crate::prepared::prepared;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{KeyId, Result, TenantId};

impl KeysDriver<'_> {
    /// Returns the usage of a key since a time, inclusive.
    ///
    /// Every call counts, also a blocked or replayed one. A call without a cost counts as 0 cents. If the key has no
    /// such call, does not exist, or belongs to another tenant, the number and the cost are 0. The usage of a deleted
    /// key remains.
    ///
    /// The answer is the exact sum over the calls in the statement's snapshot. The cost of the read depends on
    /// [`roll_up_usage`](Self::roll_up_usage): counted calls are read as days and quarter hours, and the others one by
    /// one.
    ///
    /// # Errors
    ///
    /// [`Error::CostNotANumber`](crate::Error::CostNotANumber) if a call of the range has such a cost.
    pub fn fetch_key_usage(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        since: DateTime<Utc>,
    ) -> Result<KeyUsageSnapshot> {
        let sums: Sums = KeySince { tenant_id, key_id, since: since.into() }.read_one(self.conn)?;
        sums.of_key(tenant_id, key_id)
    }

    /// Returns the usage of a tenant since a time, inclusive.
    ///
    /// It includes the calls of all keys, also of deleted ones, and the calls without a key. The answer is as exact,
    /// and the read as cheap, as [`fetch_key_usage`](Self::fetch_key_usage): a tenant has its own buckets, so the
    /// number of its keys does not matter.
    ///
    /// # Errors
    ///
    /// [`Error::CostNotANumber`](crate::Error::CostNotANumber) if a call of the range has such a cost.
    pub fn fetch_tenant_usage(
        &mut self,
        tenant_id: &TenantId,
        since: DateTime<Utc>,
    ) -> Result<KeyUsageSnapshot> {
        let sums: Sums = TenantSince { tenant_id, since: since.into() }.read_one(self.conn)?;
        sums.of_tenant(tenant_id)
    }
}

struct KeySince<'a> {
    tenant_id: &'a TenantId,
    key_id: &'a KeyId,
    since: Time,
}

impl QueryFragment<Pg> for KeySince<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "asked" AS (SELECT "#);
        out.push_bind_param::<Text, _>(self.tenant_id)?;
        out.push_sql(r#"::text AS "tenant_id", "#);
        out.push_bind_param::<Text, _>(self.key_id)?;
        out.push_sql(r#"::text AS "api_key_id", "#);
        out.push_bind_param::<Timestamptz, _>(&self.since)?;
        out.push_sql(concat!(
            r#"::timestamptz AS "since"), "#,
            since_edge!(),
            " SELECT ",
            since_columns!(),
            r#" FROM "days""#,
            since_sums!(of_a_key, "usage_key_buckets", r#""tenant_id" = $1 AND "api_key_id" = $2"#)
        ));
        Ok(())
    }
}

struct TenantSince<'a> {
    tenant_id: &'a TenantId,
    since: Time,
}

impl QueryFragment<Pg> for TenantSince<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "asked" AS (SELECT "#);
        out.push_bind_param::<Text, _>(self.tenant_id)?;
        out.push_sql(r#"::text AS "tenant_id", "#);
        out.push_bind_param::<Timestamptz, _>(&self.since)?;
        out.push_sql(concat!(
            r#"::timestamptz AS "since"), "#,
            since_edge!(),
            " SELECT ",
            since_columns!(),
            r#" FROM "days""#,
            since_sums!(of_a_tenant, "usage_tenant_buckets", r#""tenant_id" = $1"#)
        ));
        Ok(())
    }
}

prepared!(KeySince<'_> => SumTypes);

prepared!(TenantSince<'_> => SumTypes);
