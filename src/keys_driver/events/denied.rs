//! Reads the keys of all tenants that may not be used, from which a cache of them starts. The cache is in
//! `denied_keys`.

use std::string::FromUtf8Error;

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Binary, Bool};

use super::super::KeysDriver;
use super::stream::{ENCODING, Raw, push_bytes};
use crate::send::RunStatement;
use crate::{Error, KeyId, KeyStatus, Result, TenantId};

/// A key that may not be used, because it is frozen or its status is not `active`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
        let place = last.map(|key| (key.tenant_id.as_str().into(), key.id.as_str().into()));
        let lines: Vec<Line> =
            FetchDeniedKeys { last: place.as_ref(), limit: limit.into() }.read_all(self.conn)?;
        let unreadable = |error| Error::InvalidText(DieselError::DeserializationError(Box::new(error)));
        lines.into_iter().map(|line| line.read().map_err(unreadable)).collect()
    }

    /// Fetches a page of the same walk, without keys whose tenant or id is not UTF-8.
    pub(crate) fn walk_denied_keys(&mut self, last: Option<&Place>, limit: u32) -> Result<DeniedPage> {
        let lines: Vec<Line> = FetchDeniedKeys { last, limit: limit.into() }.read_all(self.conn)?;
        let next = lines.last().map(Line::place);
        Ok(DeniedPage { keys: lines.into_iter().filter_map(|line| line.read().ok()).collect(), next })
    }
}

/// The tenant and the id of a key, as bytes.
pub(crate) type Place = (Vec<u8>, Vec<u8>);

/// A page of the walk over denied keys.
pub(crate) struct DeniedPage {
    pub(crate) keys: Vec<DeniedKeySnapshot>,
    /// Where the next page begins. `None` at the end.
    pub(crate) next: Option<Place>,
}

#[derive(Debug, Queryable)]
struct Line {
    tenant_id: Raw,
    id: Raw,
    status: Raw,
    is_frozen: bool,
    revision: i64,
}

impl Line {
    fn place(&self) -> Place {
        (self.tenant_id.0.clone(), self.id.0.clone())
    }

    fn read(self) -> Result<DeniedKeySnapshot, FromUtf8Error> {
        Ok(DeniedKeySnapshot {
            tenant_id: self.tenant_id.read()?.into(),
            id: self.id.read()?.into(),
            status: self.status.read_lossy().into(),
            is_frozen: self.is_frozen,
            revision: self.revision,
        })
    }
}

/// Written by hand, because Diesel sends `active` as a value, and the server uses the index only for a constant.
struct FetchDeniedKeys<'a> {
    last: Option<&'a Place>,
    limit: i64,
}

impl QueryId for FetchDeniedKeys<'_> {
    type QueryId = ();
    // The first page and the next pages have different SQL, so Diesel caches the statement by its text.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for FetchDeniedKeys<'_> {
    type SqlType = (Binary, Binary, Binary, Bool, BigInt);
}

impl RunQueryDsl<PgConnection> for FetchDeniedKeys<'_> {}

impl QueryFragment<Pg> for FetchDeniedKeys<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT ");
        for column in ["tenant_id", "id", "status"] {
            push_bytes("api_keys", column, &mut out)?;
            out.push_sql(", ");
        }
        out.push_sql(
            r#""is_frozen", "revision" FROM "api_keys" WHERE ("is_frozen" OR "status" <> 'active')"#,
        );
        if let Some((tenant_id, id)) = self.last {
            out.push_sql(r#" AND ("tenant_id", "id") > ("#);
            push_text(tenant_id, &mut out)?;
            out.push_sql(", ");
            push_text(id, &mut out)?;
            out.push_sql(")");
        }
        out.push_sql(r#" ORDER BY "tenant_id", "id" LIMIT "#);
        out.push_bind_param::<BigInt, _>(&self.limit)
    }
}

/// Pushes the text that has these bytes. As a text, the server would refuse bytes that are not UTF-8.
fn push_text<'b>(bytes: &'b Vec<u8>, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
    out.push_sql("pg_catalog.convert_from(");
    out.push_bind_param::<Binary, _>(bytes)?;
    for part in [", ", ENCODING, ")"] {
        out.push_sql(part);
    }
    Ok(())
}
