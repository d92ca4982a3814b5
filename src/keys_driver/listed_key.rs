//! Reading the rows of a page of keys. The statement of the page is in `listing`.

use diesel::deserialize::{self, FromSql, FromSqlRow, StaticallySizedRow};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::row::{Field, Row};
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz};

use super::KeySnapshot;
use crate::schema::api_keys;
use crate::time::{MaybeTime, Time};
use crate::{KeyId, KeyStatus, TenantId};

/// A row of a page: a key without its tenant, which the caller already knows.
///
/// The row is read field by field. Diesel's derived code reads it through slices of the row and a tuple, which takes
/// 5 % of the time of a page.
#[derive(Selectable)]
#[diesel(table_name = api_keys)]
pub(super) struct ListedKey {
    id: KeyId,
    name: String,
    key_prefix: String,
    status: KeyStatus,
    is_frozen: bool,
    frozen_at: MaybeTime,
    created_at: Time,
    last_used_at: MaybeTime,
    expires_at: MaybeTime,
    total_requests: i64,
    is_synthetic: bool,
    revision: i64,
}

impl ListedKey {
    pub(super) fn into_snapshot(self, tenant_id: &TenantId) -> KeySnapshot {
        KeySnapshot {
            id: self.id,
            tenant_id: tenant_id.clone(),
            name: self.name,
            key_prefix: self.key_prefix,
            status: self.status,
            is_frozen: self.is_frozen,
            frozen_at: self.frozen_at.into(),
            created_at: self.created_at.into(),
            last_used_at: self.last_used_at.into(),
            expires_at: self.expires_at.into(),
            total_requests: self.total_requests,
            is_synthetic: self.is_synthetic,
            revision: self.revision,
        }
    }
}

type Times = Nullable<Timestamptz>;
type SqlTypes = (Text, Text, Text, Text, Bool, Times, Timestamptz, Times, Times, BigInt, Bool, BigInt);

impl FromSqlRow<SqlTypes, Pg> for ListedKey {
    fn build_from_row<'a>(row: &impl Row<'a, Pg>) -> deserialize::Result<Self> {
        Ok(Self {
            id: field::<Text, _>(row, 0)?,
            name: field::<Text, _>(row, 1)?,
            key_prefix: field::<Text, _>(row, 2)?,
            status: field::<Text, _>(row, 3)?,
            is_frozen: field::<Bool, _>(row, 4)?,
            frozen_at: field::<Times, _>(row, 5)?,
            created_at: field::<Timestamptz, _>(row, 6)?,
            last_used_at: field::<Times, _>(row, 7)?,
            expires_at: field::<Times, _>(row, 8)?,
            total_requests: field::<BigInt, _>(row, 9)?,
            is_synthetic: field::<Bool, _>(row, 10)?,
            revision: field::<BigInt, _>(row, 11)?,
        })
    }
}

impl StaticallySizedRow<SqlTypes, Pg> for ListedKey {
    const FIELD_COUNT: usize = 12;
}

fn field<'a, SqlType, T>(row: &impl Row<'a, Pg>, index: usize) -> deserialize::Result<T>
where
    T: FromSql<SqlType, Pg>,
{
    T::from_nullable_sql(row.get(index).ok_or("a column is missing")?.value())
}
