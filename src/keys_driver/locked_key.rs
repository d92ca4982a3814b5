//! The row lock of one key as a type, and the one way in which a locked key is changed. An attempt that does not
//! wait is in `try_lock.rs`.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr;

use diesel::connection::TransactionManager;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::QueryFragment;

use super::{KeySnapshot, KeysDriver};
use crate::prepared::Prepared;
use crate::schema::api_keys;
use crate::{Error, KeyId, Result, TenantId};

/// A key whose row this transaction holds locked: what a change of the key asks for, and is spent on.
///
/// It reads as the [`KeySnapshot`] that was found under the lock. Nobody else can make one, copy it or
/// carry it out of the transaction's closure, so a change without the lock does not compile:
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
/// A key that was only fetched is not enough:
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
/// It is spent by the first change:
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
/// What leaves the closure is a snapshot:
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
/// and never the lock, which ends with the transaction:
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
/// An engine that begins and commits by hand instead of in a closure gives this guarantee up: then it
/// must not keep the value beyond its own `COMMIT`.
#[derive(Debug)]
#[must_use = "the row stays locked until the transaction ends, changed or not"]
pub struct LockedKey<'c> {
    snapshot: KeySnapshot,
    /// The address of the connection that holds the lock. It cannot move while `'c` lasts.
    holder: usize,
    borrow: PhantomData<&'c mut PgConnection>,
}

impl LockedKey<'_> {
    /// Gives the lock's proof up and keeps what was read under it. The row stays locked until the
    /// transaction ends.
    #[must_use]
    pub fn into_snapshot(self) -> KeySnapshot {
        self.snapshot
    }
}

impl Deref for LockedKey<'_> {
    type Target = KeySnapshot;

    fn deref(&self) -> &KeySnapshot {
        &self.snapshot
    }
}

impl<'c> KeysDriver<'c> {
    /// Fetches a key and locks its row until the transaction ends, after waiting for any other holder.
    ///
    /// What is returned was read after the wait. `None` for a missing key and for another tenant's, as
    /// in [`fetch_key_by_id`](Self::fetch_key_by_id); then nothing is locked. The lock is `FOR NO KEY
    /// UPDATE`: other changes and locks of the row wait, readers do not, and neither does an insert
    /// whose foreign key refers to the row. How long it waits at most is the session's `lock_timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::NotInTransaction`] before anything is sent, when Diesel knows of no transaction on the
    /// connection. A `BEGIN` sent as SQL is not known to Diesel.
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
            .get_result(self.conn)
            .optional()?;
        Ok(snapshot.map(|snapshot| self.locked(snapshot)))
    }

    /// The proof for a row that this connection has just locked.
    pub(super) fn locked(&self, snapshot: KeySnapshot) -> LockedKey<'c> {
        LockedKey { snapshot, holder: self.address(), borrow: PhantomData }
    }

    pub(super) fn require_transaction(&mut self) -> Result<()> {
        type Transactions = <PgConnection as Connection>::TransactionManager;

        match Transactions::transaction_manager_status_mut(self.conn).transaction_depth()? {
            Some(_) => Ok(()),
            None => Err(Error::NotInTransaction),
        }
    }

    /// Changes the row of a locked key, and returns the key as it is afterwards. Every change of one key passes here.
    ///
    /// `Statement` is a type of the caller's own: see [`Prepared`].
    pub(super) fn update_locked<Statement, Changes>(
        &mut self,
        key: LockedKey<'c>,
        changes: Changes,
    ) -> Result<KeySnapshot>
    where
        Statement: Any,
        Changes: AsChangeset<Target = api_keys::table, Changeset: QueryFragment<Pg>>,
    {
        self.require_lock(&key)?;
        let update = diesel::update(api_keys::table)
            .filter(api_keys::tenant_id.eq(&key.tenant_id))
            .filter(api_keys::id.eq(&key.id))
            .set(changes)
            .returning(KeySnapshot::as_returning());
        let updated = Prepared::<Statement, _>::new(update).get_result(self.conn).optional()?;
        updated.ok_or_else(|| Error::LockedRowGone(key.into_snapshot().id))
    }

    pub(super) fn require_lock(&mut self, key: &LockedKey<'c>) -> Result<()> {
        if key.holder != self.address() {
            return Err(Error::LockedElsewhere(key.id.clone()));
        }
        self.require_transaction()
    }

    fn address(&self) -> usize {
        ptr::from_ref::<PgConnection>(self.conn).addr()
    }
}
