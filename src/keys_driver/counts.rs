//! Counting a tenant's keys. Counts of what customers see are in `api_keys_facade_driver.rs`.

use std::collections::BTreeMap;

use diesel::dsl::count_star;
use diesel::prelude::*;

use super::KeysDriver;
use crate::listing::Listing;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::{KeyStatus, Result, TenantId};

impl KeysDriver<'_> {
    /// Counts the tenant's keys: the same keys that [`fetch_keys`](Self::fetch_keys) lists.
    ///
    /// The server counts the keys one by one. To learn only whether there are more than 100, call
    /// [`count_keys_up_to`](Self::count_keys_up_to).
    pub fn count_keys(&mut self, tenant_id: &TenantId) -> Result<i64> {
        Listing::all(tenant_id).count(self.conn)
    }

    /// Counts the tenant's keys and stops at `bound`, so the answer is at most `bound`.
    ///
    /// ```
    /// # use api_keys_driver::{KeysDriver, Result, TenantId};
    /// # use diesel::PgConnection;
    /// /// "42", or "100+".
    /// fn label(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<String> {
    ///     let count = KeysDriver::new(conn).count_keys_up_to(tenant_id, 101)?;
    ///     Ok(if count > 100 { "100+".into() } else { count.to_string() })
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # assert_eq!(label(&mut database.connect().unwrap(), &"nobody".into()).unwrap(), "0");
    /// ```
    pub fn count_keys_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> Result<i64> {
        Listing::all(tenant_id).count_up_to(bound, self.conn)
    }

    /// Counts the tenant's keys by their stored status. A status without keys is not in the map.
    ///
    /// The sum of the counts is [`count_keys`](Self::count_keys).
    pub fn count_keys_by_status(&mut self, tenant_id: &TenantId) -> Result<BTreeMap<KeyStatus, i64>> {
        let counts: Vec<(KeyStatus, i64)> = api_keys::table
            .filter(api_keys::tenant_id.eq(tenant_id))
            .group_by(api_keys::status)
            .select((api_keys::status, count_star()))
            .read_all(self.conn)?;
        Ok(counts.into_iter().collect())
    }
}
