//! Inserting a batch of keys in one statement. The struct of a new key is in `new_key.rs`.

use std::collections::HashMap;

use diesel::dsl::SqlTypeOf;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Bool, Integer, Nullable, Text, Timestamptz};

use super::refusal::{Candidate, refusal};
use super::{KeyHash, KeySnapshot, KeysDriver, NewKey};
use crate::send::RunStatement;
use crate::time::Time;
use crate::unnest::insert_unnested;
use crate::{Error, KeyId, KeyStatus, Result, TenantId};

impl KeysDriver<'_> {
    /// Inserts a batch of keys in one statement, and returns the stored keys in the order of the batch.
    ///
    /// Either all keys are inserted or none. Each key is stored as by [`insert_key`](Self::insert_key). The keys may
    /// belong to several tenants. On a server that is sharded by tenant, insert one batch per tenant. Keep a batch
    /// below a few thousand keys. An empty batch sends nothing.
    ///
    /// # Errors
    ///
    /// Before anything is sent: [`Error::InBatch`] if a value of a key does not fit its column. From the server: the
    /// errors of [`insert_key`](Self::insert_key), with the id, tenant or user of the refused key. This is also so if
    /// two keys of the batch have the same id or hash.
    ///
    /// With row-level security, the server does not say which key of several it refused. Then a taken id or hash is
    /// [`Error::UniqueViolation`], and an unknown tenant or user is [`Error::Query`].
    ///
    /// ```
    /// # use api_keys_driver::{Error, KeyHash, KeysDriver, NewKey, TenantId};
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # let now = "2026-01-01T00:00:00Z".parse().unwrap();
    /// let key = |id: &str, hash: &str| {
    ///     NewKey::new("tenant".into(), id.into(), "Imported", "sk-live", KeyHash::from(hash), now)
    /// };
    /// let mut keys = KeysDriver::new(&mut conn);
    /// let stored = keys.insert_keys(&[key("b", "1"), key("a", "2")]).unwrap();
    /// assert_eq!(stored[0].id, "b".into());
    ///
    /// let collision = keys.insert_keys(&[key("c", "3"), key("d", "1")]).unwrap_err();
    /// assert!(matches!(collision, Error::KeyHashExists(id) if id.as_str() == "d"));
    /// ```
    pub fn insert_keys(&mut self, keys: &[NewKey]) -> Result<Vec<KeySnapshot>> {
        for (index, key) in keys.iter().enumerate() {
            key.require_storable().map_err(|source| Error::InBatch { index, source: Box::new(source) })?;
        }
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let returning = <KeySnapshot as Selectable<Pg>>::construct_selection();
        let insert = InsertKeys { rows: KeyRows::of(keys), returning };
        let mut stored: Vec<KeySnapshot> = insert.insert(self.conn, |error| {
            let candidates: Vec<Candidate<'_>> = keys.iter().map(NewKey::candidate).collect();
            refusal(error, &candidates)
        })?;
        let given: HashMap<&KeyId, usize> =
            keys.iter().zip(0..).map(|(key, index)| (&key.id, index)).collect();
        stored.sort_by_key(|key| given.get(&key.id));
        Ok(stored)
    }
}

insert_unnested! {
    KeyRows<'a> into "api_keys" of key: NewKey {
        tenant_id: Text, &'a TenantId = &key.tenant_id;
        id: Text, &'a KeyId = &key.id;
        user_id: Nullable<Text>, Option<&'a str> = key.user_id.as_deref();
        name: Text, &'a str = &key.name;
        key_prefix: Text, &'a str = &key.key_prefix;
        key_hash: Text, &'a KeyHash = &key.key_hash;
        permissions_json: Nullable<Text>, Option<&'a str> = key.permissions_json.as_deref();
        allowed_workers_json: Nullable<Text>, Option<&'a str> = key.allowed_workers_json.as_deref();
        rate_limit_rpm: Nullable<Integer>, Option<i32> = key.rate_limit_rpm;
        max_concurrent_runs: Nullable<Integer>, Option<i32> = key.max_concurrent_runs;
        status: Text, &'a KeyStatus = &key.status;
        expires_at: Nullable<Timestamptz>, Option<Time> = key.expires_at.map(Time::from);
        created_at: Timestamptz, Time = key.created_at.into();
        is_synthetic: Bool, bool = key.is_synthetic;
        synthetic_scenario_id: Nullable<Text>, Option<&'a str> = key.synthetic_scenario_id.as_deref();
    }
}

struct InsertKeys<'a> {
    rows: KeyRows<'a>,
    returning: Columns,
}

type Columns = <KeySnapshot as Selectable<Pg>>::SelectExpression;

impl QueryFragment<Pg> for InsertKeys<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.rows.walk_ast(out.reborrow())?;
        out.push_sql(" RETURNING ");
        self.returning.walk_ast(out)
    }
}

impl QueryId for InsertKeys<'_> {
    type QueryId = InsertKeys<'static>;
}

impl Query for InsertKeys<'_> {
    type SqlType = SqlTypeOf<Columns>;
}

impl RunQueryDsl<PgConnection> for InsertKeys<'_> {}
