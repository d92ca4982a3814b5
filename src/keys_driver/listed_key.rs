use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;

use super::KeySnapshot;
use crate::schema::api_keys;
use crate::{KeyId, TenantId};

/// A key as a page fetches it: without its tenant, which is the one that was asked for.
///
/// To send, receive and read the same id with each key would take a tenth of a page's time.
#[derive(HasQuery)]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
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
