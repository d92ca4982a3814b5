//! A tenant's keys by id and as a list. Counts are in `counts.rs`, lists for rotation policies in `expiry.rs` and
//! `unused.rs`.

use diesel::prelude::*;

use super::listed_key::ListedKey;
use super::{KeySnapshot, KeysDriver};
use crate::listing::Listing;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::{KeyCursor, KeyId, Page, Result, TenantId};

impl KeysDriver<'_> {
    /// Fetches a page of the tenant's keys, newest first, synthetic and frozen ones too.
    ///
    /// The order is `created_at DESC, id DESC`, so keys made in the same microsecond keep their places.
    pub fn fetch_keys(&mut self, tenant_id: &TenantId, page: Page) -> Result<Vec<KeySnapshot>> {
        Listing::all(tenant_id).page(page).load(self.conn, |key: ListedKey| key.of(tenant_id))
    }

    /// Fetches the keys behind a cursor, or the newest, in the order of [`fetch_keys`](Self::fetch_keys).
    ///
    /// Unlike an offset, a cursor costs the same at any depth, and is not moved by keys that come and go:
    /// a walk meets each key that exists throughout exactly once. See [`KeyCursor`].
    pub fn fetch_keys_after(
        &mut self,
        tenant_id: &TenantId,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        Listing::all(tenant_id).after(cursor, limit).load(self.conn, |key: ListedKey| key.of(tenant_id))
    }

    /// Fetches one key; `None` for a missing key and for another tenant's.
    pub fn fetch_key_by_id(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Result<Option<KeySnapshot>> {
        KeySnapshot::query()
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .read_optional(self.conn)
    }
}
