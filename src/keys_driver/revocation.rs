//! Revoking one key, or all keys of a tenant. Deleting keys is in `delete.rs`.

use chrono::{DateTime, Utc};
use diesel::dsl::case_when;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Nullable, Text, Timestamptz};

use super::{KeySnapshot, KeysDriver, LockedKey, row_count};
use crate::require;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{KeyStatus, Result, TenantId};

impl<'c> KeysDriver<'c> {
    /// Revokes a key, and returns the changed key.
    ///
    /// It sets `status = 'revoked'`, `revoked_at`, in UTC, and `revoked_reason`. A key that is already revoked does
    /// not change: it keeps its first time and reason, and no event is appended. A frozen key stays frozen. The row
    /// stays locked until the transaction ends.
    ///
    /// # Errors
    ///
    /// The errors of [`update_key_frozen`](Self::update_key_frozen). Also, before anything is sent:
    /// [`Error::TooLong`](crate::Error::TooLong) if the reason has more than 255 characters, and
    /// [`Error::NulByte`](crate::Error::NulByte).
    pub fn update_key_revoked(
        &mut self,
        key: LockedKey<'c>,
        revoked_at: DateTime<Utc>,
        reason: Option<&str>,
    ) -> Result<KeySnapshot> {
        struct UpdateKeyRevoked;

        require_reason_fits(reason)?;
        // The condition reads the row and not `key`, because `key` may be outdated: a transaction can lock a key twice.
        let is_revoked = || api_keys::status.eq(KeyStatus::Revoked.as_str());
        let revoked_at = Some(Time::from(revoked_at));
        let changes = (
            api_keys::status.eq(KeyStatus::Revoked.as_str()),
            api_keys::revoked_at.eq(case_when(is_revoked(), api_keys::revoked_at).otherwise(revoked_at)),
            api_keys::revoked_reason.eq(case_when(is_revoked(), api_keys::revoked_reason).otherwise(reason)),
        );
        self.update_locked::<UpdateKeyRevoked, _>(key, changes)
    }

    /// Revokes every key of a tenant that is not revoked yet, and returns the number of changed keys.
    ///
    /// It also revokes frozen, expired and synthetic keys. The rows are locked in the order of their ids, after waiting
    /// for other holders, until the transaction ends. So it does not deadlock with itself or with
    /// [`record_key_uses`](Self::record_key_uses). The statement does not see keys that another transaction inserts
    /// at the same time, so stop inserting keys first.
    ///
    /// # Errors
    ///
    /// Before anything is sent: [`Error::TooLong`](crate::Error::TooLong) if the reason has more than 255 characters,
    /// and [`Error::NulByte`](crate::Error::NulByte).
    pub fn update_all_keys_revoked(
        &mut self,
        tenant_id: &TenantId,
        revoked_at: DateTime<Utc>,
        reason: Option<&str>,
    ) -> Result<i64> {
        require_reason_fits(reason)?;
        let revoked_at = revoked_at.into();
        let revoked = UpdateAllKeysRevoked { tenant_id, revoked_at, reason }.change(self.conn)?;
        Ok(row_count(revoked))
    }
}

fn require_reason_fits(reason: Option<&str>) -> Result<()> {
    require::fits_if_any("revoked_reason", 255, reason)
}

/// Written by hand, because Diesel has no `WITH`. Only an `UPDATE` with a `WITH` locks its rows in a chosen order.
struct UpdateAllKeysRevoked<'a> {
    tenant_id: &'a TenantId,
    revoked_at: Time,
    reason: Option<&'a str>,
}

impl QueryId for UpdateAllKeysRevoked<'_> {
    type QueryId = UpdateAllKeysRevoked<'static>;
}

impl RunQueryDsl<PgConnection> for UpdateAllKeysRevoked<'_> {}

impl QueryFragment<Pg> for UpdateAllKeysRevoked<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "locked" AS (SELECT "id" FROM "api_keys" WHERE "tenant_id" = "#);
        out.push_bind_param::<Text, _>(self.tenant_id)?;
        out.push_sql(r#" AND "status" <> "#);
        out.push_bind_param::<Text, _>(&KeyStatus::Revoked)?;
        out.push_sql(r#" ORDER BY "id" FOR NO KEY UPDATE) UPDATE "api_keys" SET "status" = "#);
        out.push_bind_param::<Text, _>(&KeyStatus::Revoked)?;
        out.push_sql(r#", "revoked_at" = "#);
        out.push_bind_param::<Timestamptz, _>(&self.revoked_at)?;
        out.push_sql(r#", "revoked_reason" = "#);
        out.push_bind_param::<Nullable<Text>, _>(&self.reason)?;
        out.push_sql(r#" FROM "locked" WHERE "api_keys"."id" = "locked"."id" AND "api_keys"."tenant_id" = "#);
        out.push_bind_param::<Text, _>(self.tenant_id)
    }
}
