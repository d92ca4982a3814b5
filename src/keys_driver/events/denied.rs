//! Reads the keys of all tenants that may not be used, from which a cache of them starts. The cache is in
//! `denied_keys`.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Bool, Text};

use super::super::KeysDriver;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::{KeyId, KeyStatus, Result, TenantId};

/// A key that may not be used, because it is frozen or its status is not `active`.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
#[non_exhaustive]
pub struct DeniedKeySnapshot {
    /// The tenant that the key belongs to.
    pub tenant_id: TenantId,
    /// The key's own id.
    pub id: KeyId,
    /// The status as stored.
    pub status: KeyStatus,
    /// Whether the key is frozen. It does not depend on the status.
    pub is_frozen: bool,
    /// The key's revision, which increases with each change of the key.
    pub revision: i64,
}

impl KeysDriver<'_> {
    /// Fetches the keys of all tenants that are frozen or whose status is not `active`, in the order of tenant and id,
    /// after one of them or from the start.
    ///
    /// An expired key whose status is still `active` is not among them, because the method does not read the clock. A
    /// loop over the pages returns each key that is denied throughout exactly once. It reads an index that holds no
    /// other keys.
    pub fn fetch_denied_keys_after(
        &mut self,
        last: Option<&DeniedKeySnapshot>,
        limit: u32,
    ) -> Result<Vec<DeniedKeySnapshot>> {
        FetchDeniedKeys { last: last.map(|key| (&key.tenant_id, &key.id)), limit: limit.into() }
            .read_all(self.conn)
    }
}

/// Written by hand, because Diesel sends `active` as a value, and the server uses the index only for a constant.
struct FetchDeniedKeys<'a> {
    last: Option<(&'a TenantId, &'a KeyId)>,
    limit: i64,
}

impl QueryId for FetchDeniedKeys<'_> {
    type QueryId = ();
    // The first page and the next pages have different SQL, so Diesel caches the statement by its text.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for FetchDeniedKeys<'_> {
    type SqlType = (Text, Text, Text, Bool, BigInt);
}

impl RunQueryDsl<PgConnection> for FetchDeniedKeys<'_> {}

impl QueryFragment<Pg> for FetchDeniedKeys<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            r#"SELECT "tenant_id", "id", "status", "is_frozen", "revision" FROM "api_keys"
               WHERE ("is_frozen" OR "status" <> 'active')"#,
        );
        if let Some((tenant_id, id)) = self.last {
            out.push_sql(r#" AND ("tenant_id", "id") > ("#);
            out.push_bind_param::<Text, _>(tenant_id)?;
            out.push_sql(", ");
            out.push_bind_param::<Text, _>(id)?;
            out.push_sql(")");
        }
        out.push_sql(r#" ORDER BY "tenant_id", "id" LIMIT "#);
        out.push_bind_param::<BigInt, _>(&self.limit)
    }
}
