//! Locking a key without waiting. Locking with a wait is in `locked_key.rs`.

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::UnexpectedNullError;
use diesel::sql_types::{Bool, IntoNullable};

use super::{KeySnapshot, KeysDriver, LockedKey};
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::{KeyId, Result, TenantId};

/// The result of an attempt to lock a key without waiting.
#[derive(Debug)]
#[must_use = "a locked row stays locked until the transaction ends, even if it is not changed"]
pub enum TryLock<'c> {
    /// The row is locked until the transaction ends.
    Locked(LockedKey<'c>),
    /// Another transaction holds the lock of the row, or held it while the statement ran. Nothing is locked.
    Busy,
    /// The tenant has no such key. Nothing is locked.
    NotFound,
}

impl<'c> KeysDriver<'c> {
    /// Locks a key's row as [`fetch_key_for_update`](Self::fetch_key_for_update) does, but does not wait for a row.
    ///
    /// If another transaction holds the lock, the answer is [`TryLock::Busy`]. This is not an error, so the transaction
    /// can continue. The lock is on the newest version of the row, and that version is returned.
    ///
    /// [`TryLock::NotFound`] means that the tenant had no such key when the statement began. A key that another
    /// transaction deletes, or moves to another tenant, while the statement runs is [`TryLock::Busy`]; the next
    /// attempt does not find it.
    ///
    /// ```
    /// use api_keys_driver::{Error, KeyId, KeysDriver, Result, TenantId, Transaction, TryLock};
    /// use diesel::PgConnection;
    ///
    /// /// Unfreezes a key, unless another transaction holds its lock.
    /// fn try_unfreeze(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Result<&'static str> {
    ///     Transaction::attempts(3).run(conn, |conn| {
    ///         let mut keys = KeysDriver::new(conn);
    ///         match keys.try_fetch_key_for_update(tenant_id, key_id)? {
    ///             TryLock::Locked(key) => {
    ///                 keys.update_key_unfrozen(key)?;
    ///                 Ok("unfrozen")
    ///             }
    ///             TryLock::Busy => Ok("later"),
    ///             TryLock::NotFound => Ok("no such key"),
    ///         }
    ///     })
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # assert_eq!(try_unfreeze(&mut conn, &"nobody".into(), &"key".into()).unwrap(), "no such key");
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotInTransaction`](crate::Error::NotInTransaction) as for
    /// [`fetch_key_for_update`](Self::fetch_key_for_update).
    /// [`Error::SerializationFailure`](crate::Error::SerializationFailure) under `REPEATABLE READ` and `SERIALIZABLE`,
    /// if another transaction changed the row after this transaction's snapshot.
    pub fn try_fetch_key_for_update(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Result<TryLock<'c>> {
        self.require_transaction()?;
        let locked = api_keys::table
            .select(<KeySnapshot as Selectable<Pg>>::construct_selection())
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .for_no_key_update()
            .skip_locked();
        let seen = api_keys::table
            .filter(api_keys::tenant_id.eq(tenant_id))
            .filter(api_keys::id.eq(key_id))
            .select(api_keys::id);
        match (LockSeen { seen, locked }).read_optional(self.conn)? {
            None => Ok(TryLock::NotFound),
            Some((false, _)) => Ok(TryLock::Busy),
            Some((true, Some(key))) => Ok(TryLock::Locked(self.locked(key))),
            // A column of the row is NULL, and Diesel reads a row with a NULL as a missing row.
            Some((true, None)) => {
                Err(diesel::result::Error::DeserializationError(Box::new(UnexpectedNullError)).into())
            }
        }
    }
}

/// Selects one row if the key exists: `true` and the key if the row could be locked, and otherwise `false`.
///
/// Written by hand, because Diesel has no `WITH`.
#[derive(QueryId)]
struct LockSeen<Seen, Locked> {
    seen: Seen,
    locked: Locked,
}

impl<Seen, Locked: Query> Query for LockSeen<Seen, Locked>
where
    Locked::SqlType: IntoNullable,
{
    type SqlType = (Bool, <Locked::SqlType as IntoNullable>::Nullable);
}

impl<Seen, Locked> RunQueryDsl<PgConnection> for LockSeen<Seen, Locked> {}

impl<Seen: QueryFragment<Pg>, Locked: QueryFragment<Pg>> QueryFragment<Pg> for LockSeen<Seen, Locked> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("WITH locked AS (");
        self.locked.walk_ast(out.reborrow())?;
        out.push_sql(") SELECT locked.id IS NOT NULL, locked.* FROM (");
        self.seen.walk_ast(out.reborrow())?;
        out.push_sql(") AS seen LEFT JOIN locked ON TRUE");
        Ok(())
    }
}
