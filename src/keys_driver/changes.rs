//! Changing a key's name, permissions and limits. Freezing is in `freeze.rs`, revoking in `revocation.rs`, and
//! expiry in `expiry.rs`.

use chrono::{DateTime, Utc};
use diesel::dsl::case_when;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};

use super::{KeySnapshot, KeysDriver, LockedKey};
use crate::change::Change;
use crate::schema::api_keys;
use crate::time::Time;
use crate::{Result, require};

/// The changes of a key for [`update_key`](KeysDriver::update_key). The default changes nothing.
///
/// ```
/// # use api_keys_driver::{Change, KeyChanges};
/// KeyChanges {
///     name: Change::Set("Production, read only"),
///     permissions_json: Change::Set(Some(r#"["read"]"#)),
///     rate_limit_rpm: Change::Set(None), // no limit any more
///     ..KeyChanges::default()
/// };
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyChanges<'a> {
    /// The key's name, at most 100 characters.
    pub name: Change<&'a str>,
    /// What the key may do. The text is stored without change.
    pub permissions_json: Change<Option<&'a str>>,
    /// Which workers the key may run. The text is stored without change.
    pub allowed_workers_json: Change<Option<&'a str>>,
    /// The most requests per minute, zero or more. `None` is no limit.
    pub rate_limit_rpm: Change<Option<i32>>,
    /// The most runs at the same time, zero or more. `None` is no limit.
    pub max_concurrent_runs: Change<Option<i32>>,
    /// When the key expires, in UTC. `None` is never.
    pub expires_at: Change<Option<DateTime<Utc>>>,
}

impl<'c> KeysDriver<'c> {
    /// Changes a key's name, permissions, allowed workers, limits and expiry, and returns the changed key.
    ///
    /// Each field of `changes` is either set or kept. If a value differs from the stored one, the revision grows
    /// and an event is appended. The row stays locked until the transaction ends.
    ///
    /// ```
    /// # use api_keys_driver::{Change, KeyChanges, KeyId, KeySnapshot, KeysDriver, Result, TenantId};
    /// # use diesel::{Connection, PgConnection};
    /// /// Sets a key's limit of requests per minute; `None` removes it.
    /// fn limit(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId, rpm: Option<i32>) -> Result<Option<KeySnapshot>> {
    ///     conn.transaction(|conn| {
    ///         let mut keys = KeysDriver::new(conn);
    ///         let Some(key) = keys.fetch_key_for_update(tenant_id, key_id)? else { return Ok(None) };
    ///         let changes = KeyChanges { rate_limit_rpm: Change::Set(rpm), ..KeyChanges::default() };
    ///         keys.update_key(key, &changes).map(Some)
    ///     })
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # assert_eq!(limit(&mut conn, &"tenant".into(), &"key".into(), Some(60)).unwrap(), None);
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`update_key_frozen`](Self::update_key_frozen). Also, before anything is sent:
    /// [`Error::TooLong`](crate::Error::TooLong) for the name, [`Error::NulByte`](crate::Error::NulByte) for a
    /// text, and [`Error::Negative`](crate::Error::Negative) for a limit.
    pub fn update_key(&mut self, key: LockedKey<'c>, changes: &KeyChanges<'_>) -> Result<KeySnapshot> {
        struct UpdateKey;

        let name = changes.name.value();
        let permissions_json = changes.permissions_json.value().flatten();
        let allowed_workers_json = changes.allowed_workers_json.value().flatten();
        let rate_limit_rpm = changes.rate_limit_rpm.value().flatten();
        let max_concurrent_runs = changes.max_concurrent_runs.value().flatten();
        let expires_at = changes.expires_at.value().flatten().map(Time::from);
        require::fits_if_any("name", 100, name)?;
        require::is_text_if_any("permissions_json", permissions_json)?;
        require::is_text_if_any("allowed_workers_json", allowed_workers_json)?;
        require::is_not_negative("rate_limit_rpm", rate_limit_rpm)?;
        require::is_not_negative("max_concurrent_runs", max_concurrent_runs)?;

        /// `column = CASE WHEN <is set> THEN <value> ELSE column END`: one prepared statement for all changes.
        macro_rules! set {
            ($column:ident) => {
                api_keys::$column.eq(case_when(changes.$column.is_set().into_sql::<Bool>(), $column)
                    .otherwise(api_keys::$column))
            };
        }
        let name = name.unwrap_or_default().into_sql::<Text>();
        let changes = (
            set!(name),
            set!(permissions_json),
            set!(allowed_workers_json),
            set!(rate_limit_rpm),
            set!(max_concurrent_runs),
            set!(expires_at),
        );
        self.update_locked::<UpdateKey, _>(key, changes)
    }
}
