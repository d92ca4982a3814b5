//! The row lock of one key as a type, and the one way in which a locked key is changed. An attempt that does not
//! wait is in `try_lock.rs`.

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
/// An engine that begins, commits or rolls back by hand instead of in a closure can keep the value beyond
/// its lock. A change is then refused with [`Error::LockLost`] if another transaction changed the row
/// since, so that nothing is decided on what is no longer there; if nobody did, the change is made.
#[must_use = "the row stays locked until the transaction ends, changed or not"]
pub struct LockedKey<'c> {
    snapshot: KeySnapshot,
    holder: SessionId,
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
            .read_optional(self.conn)?;
        Ok(snapshot.map(|snapshot| self.locked(snapshot)))
    }

    /// The proof for a row that this connection has just locked.
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

    /// Changes the row of a locked key, and returns the key as it is afterwards. Every change of one key passes here.
    ///
    /// `Statement` is a type of the caller's own: see [`Prepared`].
    #[expect(clippy::needless_pass_by_value, reason = "a lock is spent on its change")]
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

    /// Runs a statement on the row of a locked key, which it names by its revision.
    pub(super) fn run_locked<T>(
        &mut self,
        key: &LockedKey<'c>,
        mut statement: impl FnMut(&mut PgConnection, i64) -> Result<Option<T>>,
    ) -> Result<T> {
        self.require_lock(key)?;
        if let Some(answer) = statement(self.conn, key.revision)? {
            return Ok(answer);
        }
        // The row changed since it was locked: this transaction did that, or the lock was lost.
        let own = self.fetch_own_revision(key)?;
        let answer = own.map(|revision| statement(self.conn, revision)).transpose()?.flatten();
        answer.ok_or_else(|| Error::LockLost(key.id.clone()))
    }

    /// Fetches the revision of a row that this transaction wrote: no other row that it sees is in progress.
    ///
    /// A statement of its own, because Citus refuses an `UPDATE` whose condition calls a volatile function.
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
