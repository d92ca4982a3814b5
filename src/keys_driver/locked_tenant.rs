//! The lock of a tenant as a type, for rules about all keys of a tenant, such as a limit on their number. The lock of
//! one key is in `locked_key.rs`.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Text;

use super::KeysDriver;
use crate::send::RunStatement;
use crate::{Error, Result, TenantId};

/// A tenant whose lock is held by this transaction. See [`lock_tenant`](KeysDriver::lock_tenant).
///
/// It dereferences to the [`TenantId`]. Only the crate can make one, and like a [`LockedKey`](super::LockedKey) it
/// cannot leave the closure of the transaction. So an engine's function can require the lock as a parameter, and take the
/// tenant from it:
///
/// ```
/// # use api_keys_driver::{KeySnapshot, KeysDriver, LockedTenant, NewKey, Result, TenantId};
/// fn insert_key<'c>(keys: &mut KeysDriver<'c>, tenant: &LockedTenant<'c>, key: NewKey) -> Result<KeySnapshot> {
///     keys.insert_key(&NewKey { tenant_id: TenantId::clone(tenant), ..key })
/// }
/// ```
#[must_use = "the tenant stays locked until the transaction ends"]
pub struct LockedTenant<'c> {
    tenant_id: TenantId,
    borrow: PhantomData<&'c mut PgConnection>,
}

impl Deref for LockedTenant<'_> {
    type Target = TenantId;

    fn deref(&self) -> &TenantId {
        &self.tenant_id
    }
}

impl fmt::Debug for LockedTenant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockedTenant").field(&self.tenant_id).finish()
    }
}

impl<'c> KeysDriver<'c> {
    /// Locks a tenant until the transaction ends. It waits if another transaction holds the lock.
    ///
    /// Two transactions that each count a tenant's keys and then insert one do not see each other's key. So both may
    /// insert the last key that a limit allows. With this lock, the second transaction waits for the first, and its
    /// count includes the key of the first:
    ///
    /// ```
    /// use api_keys_driver::{Error, KeySnapshot, KeysDriver, NewKey, Result, Transaction};
    /// use diesel::PgConnection;
    ///
    /// /// Inserts a key unless its tenant has `most` keys already.
    /// fn insert_within_limit(conn: &mut PgConnection, key: &NewKey, most: u32) -> Result<Option<KeySnapshot>> {
    ///     Transaction::attempts(3).run(conn, |conn| {
    ///         let mut keys = KeysDriver::new(conn);
    ///         let tenant_id = keys.lock_tenant(&key.tenant_id)?;
    ///         if keys.count_keys_up_to(&tenant_id, most)? >= i64::from(most) {
    ///             return Ok(None);
    ///         }
    ///         keys.insert_key(key).map(Some)
    ///     })
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # let key = |id: &str| {
    /// #     let hash = api_keys_driver::KeyHash::from(id);
    /// #     NewKey::new("tenant".into(), id.into(), "Production", "sk-live", hash, chrono::DateTime::UNIX_EPOCH)
    /// # };
    /// # assert!(insert_within_limit(&mut conn, &key("a"), 1).unwrap().is_some());
    /// # assert!(insert_within_limit(&mut conn, &key("b"), 1).unwrap().is_none());
    /// ```
    ///
    /// Only `lock_tenant` waits for this lock. Other methods of this crate do not, and neither do other programs that
    /// insert keys. The lock is an advisory lock of the transaction, so it works through a bouncer in transaction
    /// mode. `lock_timeout` limits the wait. The number of the lock is a hash of the tenant's id, so two tenants may,
    /// rarely, share a lock and wait for each other. Lock the tenant before you lock one of its keys. On a sharded
    /// server, the lock is on the shard that holds the tenant's keys.
    ///
    /// # Errors
    ///
    /// - [`Error::NotInTransaction`] before anything is sent, if the connection has no transaction.
    /// - [`Error::RepeatableRead`] in a `REPEATABLE READ` transaction, whose count would not include the keys that
    ///   others inserted during the wait. The tenant is locked nevertheless. In a `SERIALIZABLE` transaction, the
    ///   server detects the conflict instead, with [`Error::SerializationFailure`].
    pub fn lock_tenant(&mut self, tenant_id: &TenantId) -> Result<LockedTenant<'c>> {
        self.require_transaction()?;
        let (_, isolation): (String, String) = LockTenant(tenant_id).read_one(self.conn)?;
        if isolation == "repeatable read" {
            return Err(Error::RepeatableRead);
        }
        Ok(LockedTenant { tenant_id: tenant_id.clone(), borrow: PhantomData })
    }
}

/// Written by hand, because it selects no column. The subselect sends the statement to the tenant's shard. It reads no
/// keys and always returns one row.
struct LockTenant<'a>(&'a TenantId);

impl QueryId for LockTenant<'_> {
    type QueryId = LockTenant<'static>;
}

impl Query for LockTenant<'_> {
    type SqlType = (Text, Text);
}

impl RunQueryDsl<PgConnection> for LockTenant<'_> {}

impl QueryFragment<Pg> for LockTenant<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT pg_advisory_xact_lock(hashtextextended(");
        out.push_bind_param::<Text, _>(self.0)?;
        out.push_sql(
            r#", 0))::text, current_setting('transaction_isolation')
               FROM (SELECT count(*) FROM (SELECT FROM "api_keys" WHERE "tenant_id" = "#,
        );
        out.push_bind_param::<Text, _>(self.0)?;
        out.push_sql(r#" ORDER BY "created_at" DESC, "id" DESC LIMIT 0) AS "key") AS "tenant""#);
        Ok(())
    }
}
