use chrono::{DateTime, Utc};
use diesel::data_types::PgTimestamp;
use diesel::deserialize::{self, FromSql, FromSqlRow, StaticallySizedRow};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::row::{Field, Row};
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz};

use super::KeySnapshot;
use crate::schema::api_keys;
use crate::{KeyId, TenantId};

/// A key as a page fetches it: without its tenant, which is the one that was asked for.
///
/// It is read field by field. Diesel's derived way, through slices of the row and a tuple, costs
/// nothing that is felt for one row, and a twentieth of the time of a page.
#[derive(Selectable)]
#[diesel(table_name = api_keys)]
pub(super) struct ListedKey {
    id: KeyId,
    name: String,
    key_prefix: String,
    status: String,
    is_frozen: bool,
    frozen_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    last_used_at: Option<DateTime<Utc>>,
    expires_at: Option<DateTime<Utc>>,
    total_requests: i64,
}

impl ListedKey {
    pub(super) fn of(self, tenant_id: &TenantId) -> KeySnapshot {
        KeySnapshot {
            id: self.id,
            tenant_id: tenant_id.clone(),
            name: self.name,
            key_prefix: self.key_prefix,
            status: self.status,
            is_frozen: self.is_frozen,
            frozen_at: self.frozen_at,
            created_at: self.created_at,
            last_used_at: self.last_used_at,
            expires_at: self.expires_at,
            total_requests: self.total_requests,
        }
    }
}

type MaybeTime = Nullable<Timestamptz>;
type SqlTypes = (Text, Text, Text, Text, Bool, MaybeTime, Timestamptz, MaybeTime, MaybeTime, BigInt);

impl FromSqlRow<SqlTypes, Pg> for ListedKey {
    fn build_from_row<'a>(row: &impl Row<'a, Pg>) -> deserialize::Result<Self> {
        Ok(Self {
            id: field::<Text, _>(row, 0)?,
            name: field::<Text, _>(row, 1)?,
            key_prefix: field::<Text, _>(row, 2)?,
            status: field::<Text, _>(row, 3)?,
            is_frozen: field::<Bool, _>(row, 4)?,
            frozen_at: field::<MaybeTime, Option<_>>(row, 5)?.map(utc).transpose()?,
            created_at: utc(field::<Timestamptz, _>(row, 6)?)?,
            last_used_at: field::<MaybeTime, Option<_>>(row, 7)?.map(utc).transpose()?,
            expires_at: field::<MaybeTime, Option<_>>(row, 8)?.map(utc).transpose()?,
            total_requests: field::<BigInt, _>(row, 9)?,
        })
    }
}

impl StaticallySizedRow<SqlTypes, Pg> for ListedKey {
    const FIELD_COUNT: usize = 10;
}

fn field<'a, SqlType, T>(row: &impl Row<'a, Pg>, nth: usize) -> deserialize::Result<T>
where
    T: FromSql<SqlType, Pg>,
{
    T::from_nullable_sql(row.get(nth).ok_or("a column is missing")?.value())
}

/// The same moment as by Diesel's way, which counts days and seconds anew for each field.
fn utc(PgTimestamp(micros_since_2000): PgTimestamp) -> deserialize::Result<DateTime<Utc>> {
    const FROM_1970_TO_2000: i64 = 946_684_800_000_000;

    let micros = micros_since_2000.checked_add(FROM_1970_TO_2000);
    Ok(micros.and_then(DateTime::from_timestamp_micros).ok_or("a time that is out of range")?)
}
