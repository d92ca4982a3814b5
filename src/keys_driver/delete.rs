//! Deleting one key, or a tenant's keys in batches. Revoking, which keeps the row, is in `revocation.rs`.

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::Text;

use super::{KeySnapshot, KeysDriver, LockedKey, row_count};
use crate::listing::{Listing, SelectKeys};
use crate::prepared::Prepared;
use crate::schema::api_keys;
use crate::send::RunStatement;
use crate::{KeyId, Result, TenantId};

impl<'c> KeysDriver<'c> {
    /// Deletes a locked key, and returns it as it was before.
    ///
    /// To take a key out of use, revoke it instead. A deleted key looks like a key that never existed, and a new key
    /// may get its id and its hash. The deletion waits for transactions whose rows reference the key by a foreign key,
    /// such as one that inserts into `worker_runs`. The foreign key decides what happens to those rows.
    ///
    /// Some data outlives the key. This matters for a right to erasure:
    ///
    /// - `api_key_events` keeps the key's id, tenant, times and statuses. Its columns `actor` and `reason` say who
    ///   froze the key and why.
    /// - `proxy_calls` keeps the key's id. Its columns `user_id`, `request_json` and `response_json` hold what users
    ///   sent and received.
    /// - The tables of usage keep the key's id, and the number and the cost of its calls.
    ///
    /// The name, the prefix, the hash and the user of the key are deleted with its row. An engine removes the personal
    /// data that remains with its own statements, in the same transaction. They need the privilege to update events and
    /// calls, which the worker of `docs/privileges.md` does not have:
    ///
    /// ```
    /// # use api_keys_driver::{Error, KeyId, KeysDriver, Result, TenantId};
    /// # use api_keys_driver::schema::{api_key_events, proxy_calls};
    /// # use diesel::prelude::*;
    /// /// Deletes a key and the personal data in its events and calls.
    /// fn erase(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Result<bool> {
    ///     conn.transaction(|conn| {
    ///         let mut keys = KeysDriver::new(conn);
    ///         let Some(key) = keys.fetch_key_for_update(tenant_id, key_id)? else { return Ok(false) };
    ///         keys.delete_key(key)?;
    ///         let events = api_key_events::table
    ///             .filter(api_key_events::tenant_id.eq(tenant_id))
    ///             .filter(api_key_events::key_id.eq(key_id));
    ///         diesel::update(events)
    ///             .set((api_key_events::actor.eq(None::<&str>), api_key_events::reason.eq(None::<&str>)))
    ///             .execute(keys.connection())?;
    ///         let calls = proxy_calls::table
    ///             .filter(proxy_calls::tenant_id.eq(tenant_id))
    ///             .filter(proxy_calls::api_key_id.eq(key_id));
    ///         diesel::update(calls) // in batches, if the key has many calls
    ///             .set((
    ///                 proxy_calls::user_id.eq(None::<&str>),
    ///                 proxy_calls::request_json.eq(""),
    ///                 proxy_calls::response_json.eq(None::<&str>),
    ///             ))
    ///             .execute(keys.connection())?;
    ///         Ok(true)
    ///     })
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # let now = "2026-01-01T00:00:00Z".parse().unwrap();
    /// # let key = api_keys_driver::NewKey::new("tenant".into(), "key".into(), "Production", "sk", "hash".into(), now);
    /// # KeysDriver::new(&mut conn).insert_key(&key).unwrap();
    /// # assert!(erase(&mut conn, &"tenant".into(), &"key".into()).unwrap());
    /// # assert!(!erase(&mut conn, &"tenant".into(), &"key".into()).unwrap());
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`update_key_frozen`](Self::update_key_frozen). [`Error::Query`](crate::Error::Query) if a foreign
    /// key forbids the deletion.
    #[expect(clippy::needless_pass_by_value, reason = "a lock allows one change")]
    pub fn delete_key(&mut self, key: LockedKey<'c>) -> Result<KeySnapshot> {
        struct DeleteKey;

        self.run_locked(&key, |conn, revision| {
            let delete = diesel::delete(api_keys::table)
                .filter(api_keys::tenant_id.eq(&key.tenant_id))
                .filter(api_keys::id.eq(&key.id))
                .filter(api_keys::revision.eq(revision))
                .returning(KeySnapshot::as_returning());
            Prepared::<DeleteKey, _>::new(delete).change_optional(conn)
        })
    }

    /// Deletes up to `limit` keys of a tenant, newest first, and returns the number of deleted keys.
    ///
    /// It also deletes frozen, revoked and synthetic keys. Call it until it returns 0, each time in a new transaction.
    /// The rows are locked in the order of their ids, after waiting for other holders, until the transaction ends. So
    /// it does not deadlock with itself or with [`record_key_uses`](Self::record_key_uses). Batches of about a
    /// thousand keys keep the locks short.
    ///
    /// If two transactions delete the same tenant's keys at the same time, the second waits for the first. It may then
    /// return 0 although keys remain, because the first deleted its batch. A statement does not see keys that another
    /// transaction inserts at the same time, so stop inserting keys before you delete all of them.
    ///
    /// The data that outlives each key is the same as for [`delete_key`](Self::delete_key).
    ///
    /// ```
    /// # use api_keys_driver::{KeysDriver, Result, TenantId};
    /// # use diesel::PgConnection;
    /// fn delete_all(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<()> {
    ///     while KeysDriver::new(conn).delete_keys(tenant_id, 1000)? > 0 {}
    ///     Ok(())
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # delete_all(&mut database.connect().unwrap(), &"nobody".into()).unwrap();
    /// ```
    pub fn delete_keys(&mut self, tenant_id: &TenantId, limit: u32) -> Result<i64> {
        let batch = Listing::all(tenant_id).after(None, limit).select::<OnlyId>();
        Ok(row_count(DeleteKeys { tenant_id, batch }.change(self.conn)?))
    }
}

#[derive(Selectable)]
#[diesel(table_name = api_keys, check_for_backend(Pg))]
#[expect(dead_code, reason = "only its column is selected")]
struct OnlyId {
    id: KeyId,
}

/// Written by hand, because Diesel has no `WITH`. Only a `DELETE` with a `WITH` locks its rows in a chosen order.
struct DeleteKeys<'a> {
    tenant_id: &'a TenantId,
    batch: SelectKeys<'a, <OnlyId as Selectable<Pg>>::SelectExpression>,
}

impl QueryFragment<Pg> for DeleteKeys<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "batch" AS ("#);
        self.batch.walk_ast(out.reborrow())?;
        out.push_sql(
            r#"), "locked" AS (
                 SELECT "api_keys"."id" FROM "batch"
                 JOIN "api_keys" ON "api_keys"."id" = "batch"."id" AND "api_keys"."tenant_id" = "#,
        );
        out.push_bind_param::<Text, _>(self.tenant_id)?;
        out.push_sql(
            r#" ORDER BY "api_keys"."id" FOR UPDATE OF "api_keys")
               DELETE FROM "api_keys" USING "locked"
               WHERE "api_keys"."id" = "locked"."id" AND "api_keys"."tenant_id" = "#,
        );
        out.push_bind_param::<Text, _>(self.tenant_id)
    }
}

impl QueryId for DeleteKeys<'_> {
    type QueryId = DeleteKeys<'static>;
}

impl RunQueryDsl<PgConnection> for DeleteKeys<'_> {}
