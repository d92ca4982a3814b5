//! The row lock of a key as a type, and the function through which every change of a locked key goes. Locking
//! without waiting is in `try_lock.rs`.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use diesel::connection::TransactionManager;
use diesel::dsl::sql;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::QueryFragment;
use diesel::sql_types::Bool;

use super::{KeySnapshot, KeysDriver};
use crate::prepared::Prepared;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::session::SessionId;
use crate::{Error, KeyId, Result, TenantId};

/// A key whose row is locked by this transaction. A method that changes the key takes it by value.
///
/// It dereferences to the [`KeySnapshot`] that was read under the lock. Only the crate can make one. It cannot be
/// copied, and it cannot leave the closure of the transaction. So a change needs the lock:
///
/// ```
/// # use api_keys_driver::{Error, KeyId, KeysDriver, Result, TenantId};
/// # use chrono::{DateTime, Utc};
/// # use diesel::{Connection, PgConnection};
/// # fn freeze(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Result<()> {
/// conn.transaction(|conn| {
///     let mut keys = KeysDriver::new(conn);
///     if let Some(key) = keys.fetch_key_for_update(tenant_id, key_id)? {
///         keys.update_key_frozen(key, now)?;
///     }
///     Ok(())
/// })
/// # }
/// ```
///
/// A key that was only fetched is not accepted, so this does not compile:
///
/// ```compile_fail,E0308
/// # use api_keys_driver::{Error, KeyId, KeysDriver, Result, TenantId};
/// # use chrono::{DateTime, Utc};
/// # use diesel::{Connection, PgConnection};
/// # fn freeze(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Result<()> {
/// conn.transaction(|conn| {
///     let mut keys = KeysDriver::new(conn);
///     if let Some(key) = keys.fetch_key_by_id(tenant_id, key_id)? {
///         keys.update_key_frozen(key, now)?;
///     }
///     Ok(())
/// })
/// # }
/// ```
///
/// Each change needs a new lock, because the first change takes the value. A second change does not compile:
///
/// ```compile_fail,E0382
/// # use api_keys_driver::{Error, KeyId, KeysDriver, Result, TenantId};
/// # use chrono::{DateTime, Utc};
/// # use diesel::{Connection, PgConnection};
/// # fn freeze(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Result<()> {
/// conn.transaction(|conn| {
///     let mut keys = KeysDriver::new(conn);
///     if let Some(key) = keys.fetch_key_for_update(tenant_id, key_id)? {
///         keys.update_key_frozen(key, now)?;
///         keys.update_key_unfrozen(key)?;
///     }
///     Ok(())
/// })
/// # }
/// ```
///
/// A snapshot can leave the closure:
///
/// ```
/// # use api_keys_driver::{Error, KeyId, KeySnapshot, KeysDriver, Result, TenantId};
/// # use diesel::{Connection, PgConnection};
/// # fn look(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Result<Option<KeySnapshot>> {
/// let key = conn.transaction(|conn| {
///     let key = KeysDriver::new(conn).fetch_key_for_update(tenant_id, key_id)?;
///     Ok::<_, Error>(key.map(|key| key.into_snapshot()))
/// })?;
/// # Ok(key)
/// # }
/// ```
///
/// The lock cannot, because it ends with the transaction:
///
/// ```compile_fail
/// # use api_keys_driver::{Error, KeyId, KeySnapshot, KeysDriver, Result, TenantId};
/// # use diesel::{Connection, PgConnection};
/// # fn look(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Result<Option<KeySnapshot>> {
/// let key = conn.transaction(|conn| {
///     let key = KeysDriver::new(conn).fetch_key_for_update(tenant_id, key_id)?;
///     Ok::<_, Error>(key.map(|key| key))
/// })?;
/// # Ok(key.map(|key| key.into_snapshot()))
/// # }
/// ```
///
/// An engine that begins and ends its transactions without a closure can keep the value after the lock has ended.
/// In that case, a change returns [`Error::LockLost`] if another transaction has changed the row. If the row has
/// not changed, the change succeeds.
#[must_use = "the row stays locked until the transaction ends, even if it is not changed"]
pub struct LockedKey<'c> {
    snapshot: KeySnapshot,
    holder: SessionId,
    borrow: PhantomData<&'c mut PgConnection>,
}

impl LockedKey<'_> {
    /// Returns the snapshot that was read under the lock, and drops the right to change the key. The row stays
    /// locked until the transaction ends.
    #[must_use]
    pub fn into_snapshot(self) -> KeySnapshot {
        self.snapshot
    }
}

impl fmt::Debug for LockedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockedKey").field(&self.snapshot).finish()
    }
}

impl Deref for LockedKey<'_> {
    type Target = KeySnapshot;

    fn deref(&self) -> &KeySnapshot {
        &self.snapshot
    }
}

impl<'c> KeysDriver<'c> {
    /// Locks a key's row until the transaction ends, and returns the key as it is under the lock.
    ///
    /// The method waits if another transaction holds the lock. The session's `lock_timeout` limits the wait; then the
    /// answer is [`Error::LockTimeout`]. Returns `None` if the tenant has no such key; then nothing is locked.
    ///
    /// The lock is `FOR NO KEY UPDATE`. Other changes and locks of the row wait for it. Readers do not wait, and
    /// neither do inserts whose foreign key references the row.
    ///
    /// # Errors
    ///
    /// [`Error::NotInTransaction`] before anything is sent, if the connection has no transaction. Diesel does not see a
    /// transaction that was begun by sending `BEGIN` as SQL.
    pub fn fetch_key_for_update(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<LockedKey<'c>>> {
        self.require_transaction()?;
        let snapshot = KeySnapshot::query()
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .for_no_key_update()
            .read_optional(self.conn)?;
        Ok(snapshot.map(|snapshot| self.locked(snapshot)))
    }

    /// Makes the value for a row that this connection has just locked.
    pub(super) fn locked(&mut self, snapshot: KeySnapshot) -> LockedKey<'c> {
        LockedKey { snapshot, holder: SessionId::of(self.conn), borrow: PhantomData }
    }

    pub(super) fn require_transaction(&mut self) -> Result<()> {
        type Transactions = <PgConnection as Connection>::TransactionManager;

        match Transactions::transaction_manager_status_mut(self.conn).transaction_depth()? {
            Some(_) => Ok(()),
            None => Err(Error::NotInTransaction),
        }
    }

    /// Changes the row of a locked key, and returns the changed key. Every change of one key calls this function.
    ///
    /// `Statement` is a type that identifies the statement: see [`Prepared`].
    #[expect(clippy::needless_pass_by_value, reason = "a lock allows one change")]
    pub(super) fn update_locked<Statement, Changes>(
        &mut self,
        key: LockedKey<'c>,
        changes: Changes,
    ) -> Result<KeySnapshot>
    where
        Statement: Any,
        Changes: AsChangeset<Target = api_keys::table, Changeset: QueryFragment<Pg>> + Clone,
    {
        self.run_locked(&key, |conn, revision| {
            let update = diesel::update(api_keys::table)
                .filter(api_keys::tenant_id.eq(&key.tenant_id))
                .filter(api_keys::id.eq(&key.id))
                .filter(api_keys::revision.eq(revision))
                .set(changes.clone())
                .returning(KeySnapshot::as_returning());
            Prepared::<Statement, _>::new(update).change_optional(conn)
        })
    }

    /// Runs a statement on the row of a locked key. The statement's condition includes the row's revision.
    pub(super) fn run_locked<T>(
        &mut self,
        key: &LockedKey<'c>,
        mut statement: impl FnMut(&mut PgConnection, i64) -> Result<Option<T>>,
    ) -> Result<T> {
        self.require_lock(key)?;
        if let Some(answer) = statement(self.conn, key.revision)? {
            return Ok(answer);
        }
        // The row has changed since it was locked: either this transaction changed it, or the lock was lost.
        let own = self.fetch_own_revision(key)?;
        let answer = own.map(|revision| statement(self.conn, revision)).transpose()?.flatten();
        answer.ok_or_else(|| Error::LockLost(key.id.clone()))
    }

    /// Fetches the revision of the key's row, if this transaction wrote the row. A row that the transaction sees
    /// and whose writer is in progress is its own.
    ///
    /// It is a separate statement, because Citus refuses an `UPDATE` whose condition calls a volatile function.
    fn fetch_own_revision(&mut self, key: &LockedKey<'c>) -> Result<Option<i64>> {
        struct FetchOwnRevision;

        let is_own = sql::<Bool>("pg_xact_status((pg_current_xact_id()::text::bigint - ")
            .sql(r#"age("api_keys"."xmin"))::text::xid8) = 'in progress'"#);
        let revision = api_keys::table
            .filter(api_keys::tenant_id.eq(&key.tenant_id))
            .filter(api_keys::id.eq(&key.id))
            .filter(is_own)
            .select(api_keys::revision);
        Prepared::<FetchOwnRevision, _>::new(revision).read_optional(self.conn)
    }

    fn require_lock(&mut self, key: &LockedKey<'c>) -> Result<()> {
        if key.holder != SessionId::of(self.conn) {
            return Err(Error::LockedElsewhere(key.id.clone()));
        }
        self.require_transaction()
    }
}
