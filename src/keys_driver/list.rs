//! Fetching one key by id, and listing a tenant's keys. Counts are in `counts.rs`. Lists for rotation policies are in
//! `expiry.rs` and `unused.rs`.

use diesel::prelude::*;

use super::listed_key::ListedKey;
use super::{KeySnapshot, KeysDriver};
use crate::listing::Listing;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::{KeyCursor, KeyId, Page, Result, TenantId};

impl KeysDriver<'_> {
    /// Fetches a page of the tenant's keys, newest first, including synthetic, frozen and revoked keys.
    ///
    /// The order is `created_at DESC, id DESC`, so it is the same for each page. Nothing is locked.
    pub fn fetch_keys(&mut self, tenant_id: &TenantId, page: Page) -> Result<Vec<KeySnapshot>> {
        Listing::all(tenant_id).page(page).load(self.conn, |key: ListedKey| key.into_snapshot(tenant_id))
    }

    /// Fetches the keys after a cursor, or from the start, in the order of [`fetch_keys`](Self::fetch_keys).
    ///
    /// Unlike an offset, a cursor costs the same at any depth. Keys that are inserted or deleted between two pages do
    /// not move the others: a loop over the pages sees every other key exactly once. [`KeyCursor`] shows such a loop.
    pub fn fetch_keys_after(
        &mut self,
        tenant_id: &TenantId,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        Listing::all(tenant_id)
            .after(cursor, limit)
            .load(self.conn, |key: ListedKey| key.into_snapshot(tenant_id))
    }

    /// Fetches one key. Returns `None` if the tenant has no such key. Nothing is locked.
    pub fn fetch_key_by_id(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Result<Option<KeySnapshot>> {
        KeySnapshot::query()
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .read_optional(self.conn)
    }
}
