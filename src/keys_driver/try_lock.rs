//! Locking a key without waiting.

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::UnexpectedNullError;
use diesel::sql_types::{Bool, IntoNullable};

use super::{KeySnapshot, KeysDriver, LockedKey};
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::{KeyId, Result, TenantId};

/// What became of an attempt to lock a key without waiting.
#[derive(Debug)]
#[must_use = "a key that was locked stays locked until the transaction ends, changed or not"]
pub enum TryLock<'c> {
    /// The row is locked until the transaction ends.
    Locked(LockedKey<'c>),
    /// Another transaction holds the row, or held it while this statement ran. Nothing is locked.
    Busy,
    /// The key is missing or another tenant's. Nothing is locked.
    NotFound,
}

impl<'c> KeysDriver<'c> {
    /// Locks a key as [`fetch_key_for_update`](Self::fetch_key_for_update) does if nobody holds it, and
    /// never waits for a row.
    ///
    /// A busy row is an answer and not an error, so the transaction goes on. One statement looks for the
    /// key and locks it. What decides between the answers is the look: [`TryLock::NotFound`] means that
    /// the key was not this tenant's when the statement began. A key that was, and is deleted or handed to
    /// another tenant by a transaction that commits before the statement gets to lock it, is
    /// [`TryLock::Busy`], for that transaction held it; the next attempt does not find it. A key that
    /// came to the tenant meanwhile is not found yet. What is locked is the row's newest version, read
    /// under the lock.
    ///
    /// ```
    /// use api_keys_driver::{Error, KeyId, KeysDriver, Result, TenantId, Transaction, TryLock};
    /// use diesel::PgConnection;
    ///
    /// /// Unfreezes a key, unless somebody is at it.
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
    /// [`fetch_key_for_update`](Self::fetch_key_for_update). Under `REPEATABLE READ` and above, a row that
    /// was changed since the transaction's snapshot is
    /// [`Error::SerializationFailure`](crate::Error::SerializationFailure).
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
            // A NULL in the row, which `Option` takes for a row that is not there.
            Some((true, None)) => {
                Err(diesel::result::Error::DeserializationError(Box::new(UnexpectedNullError)).into())
            }
        }
    }
}

/// A row if the key is seen, with `true` and the key in it if it could be locked. By hand, because
/// Diesel has no `WITH`.
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
