//! Inserting metered calls, for services in which no other program writes them. The sums over calls are in `usage.rs`.

use bigdecimal::BigDecimal;
use chrono::{DateTime, Utc};
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Bool, Integer, Nullable, Numeric, Text, Timestamptz};

use super::{KeysDriver, row_count};
use crate::send::RunStatement;
use crate::time::Time;
use crate::unnest::insert_unnested;
use crate::{Error, KeyId, Result, TenantId, require};

/// A call to insert: a metered request that was made with a key.
///
/// [`NewCall::new`] takes the values that every call has. Set the other fields as in the example of
/// [`insert_calls`](KeysDriver::insert_calls). A text without a stated limit may have any length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCall {
    /// The tenant whose key was used, at most 100 characters.
    pub tenant_id: TenantId,
    /// The call's id, at most 100 characters. It must be unique among the calls of all tenants.
    pub id: String,
    /// The key that was used, at most 100 characters.
    pub key_id: Option<KeyId>,
    /// The user for whom the call was made, at most 255 characters.
    pub user_id: Option<String>,
    /// The endpoint that was called, at most 100 characters.
    pub endpoint: String,
    /// The requested model, at most 100 characters.
    pub model: String,
    /// The hash of the request, at most 64 characters.
    pub request_hash: String,
    /// The request as it is stored.
    pub request_json: String,
    /// The hash of the response, at most 64 characters.
    pub response_hash: Option<String>,
    /// The response as it is stored.
    pub response_json: Option<String>,
    /// The HTTP status code of the response.
    pub status_code: Option<i32>,
    /// The error code of the response, at most 50 characters.
    pub error_code: Option<String>,
    /// The number of tokens in the request.
    pub input_tokens: Option<i32>,
    /// The number of tokens in the response.
    pub output_tokens: Option<i32>,
    /// The cost of the call in cents: at most six digits before the decimal point and four after it. `None`
    /// counts as a cost of 0.
    pub cost_cents: Option<BigDecimal>,
    /// The decisions of the policies. The text is stored without change.
    pub policy_decisions_json: Option<String>,
    /// Whether the call was blocked.
    pub was_blocked: Option<bool>,
    /// Why the call was blocked, at most 100 characters.
    pub block_reason: Option<String>,
    /// How long the call took, in milliseconds.
    pub latency_ms: Option<i32>,
    /// How long the upstream service took, in milliseconds.
    pub upstream_latency_ms: Option<i32>,
    /// Whether the response may be replayed for the same request.
    pub replay_eligible: Option<bool>,
    /// The id of the call whose response was replayed, at most 100 characters.
    pub replayed_from_id: Option<String>,
    /// When the call was made, in UTC. Usage counts the call at this time.
    pub created_at: DateTime<Utc>,
}

impl NewCall {
    /// Makes a call without a cost. The texts are empty and the optional fields are `None`.
    pub fn new(tenant_id: TenantId, id: impl Into<String>, key_id: KeyId, created_at: DateTime<Utc>) -> Self {
        Self {
            tenant_id,
            id: id.into(),
            key_id: Some(key_id),
            user_id: None,
            endpoint: String::new(),
            model: String::new(),
            request_hash: String::new(),
            request_json: String::new(),
            response_hash: None,
            response_json: None,
            status_code: None,
            error_code: None,
            input_tokens: None,
            output_tokens: None,
            cost_cents: None,
            policy_decisions_json: None,
            was_blocked: None,
            block_reason: None,
            latency_ms: None,
            upstream_latency_ms: None,
            replay_eligible: None,
            replayed_from_id: None,
            created_at,
        }
    }

    fn require_storable(&self) -> Result<()> {
        require::fits("tenant_id", 100, self.tenant_id.as_str())?;
        require::fits("id", 100, &self.id)?;
        require::fits_if_any("api_key_id", 100, self.key_id.as_ref().map(KeyId::as_str))?;
        require::fits_if_any("user_id", 255, self.user_id.as_deref())?;
        require::fits("endpoint", 100, &self.endpoint)?;
        require::fits("model", 100, &self.model)?;
        require::fits("request_hash", 64, &self.request_hash)?;
        require::is_text("request_json", &self.request_json)?;
        require::fits_if_any("response_hash", 64, self.response_hash.as_deref())?;
        require::is_text_if_any("response_json", self.response_json.as_deref())?;
        require::fits_if_any("error_code", 50, self.error_code.as_deref())?;
        require::is_exact_cost("cost_cents", self.cost_cents.as_ref())?;
        require::is_text_if_any("policy_decisions_json", self.policy_decisions_json.as_deref())?;
        require::fits_if_any("block_reason", 100, self.block_reason.as_deref())?;
        require::fits_if_any("replayed_from_id", 100, self.replayed_from_id.as_deref())
    }
}

impl KeysDriver<'_> {
    /// Inserts a batch of calls in one statement, and returns the number of inserted calls.
    ///
    /// A call whose id already exists is not an error: its row does not change, and it is not counted. So a
    /// caller that lost the answer can send the batch again, and no call is metered twice. For this, give each
    /// call its id before the first attempt. No value is shortened or rounded.
    ///
    /// The calls may belong to several tenants. On a server that is sharded by tenant, send one batch per tenant.
    /// Keep a batch below a few thousand calls. An empty batch sends nothing. The method does not check that the
    /// key exists, because calls outlive their key. It does not change the key's `total_requests`: see
    /// [`record_key_uses`](Self::record_key_uses). No key is locked.
    ///
    /// # Errors
    ///
    /// [`Error::InBatch`] before anything is sent, if a value of a call does not fit its column. Its source is
    /// [`Error::TooLong`], [`Error::NulByte`] or [`Error::TooManyDigits`], with the column.
    ///
    /// ```
    /// use api_keys_driver::{BigDecimal, KeyId, KeysDriver, NewCall, Result, TenantId};
    /// use chrono::{DateTime, Utc};
    /// use diesel::PgConnection;
    ///
    /// /// Meters a call that cost a quarter of a cent.
    /// fn meter(conn: &mut PgConnection, tenant_id: TenantId, key_id: KeyId, call_id: &str, now: DateTime<Utc>) -> Result<i64> {
    ///     let call = NewCall {
    ///         endpoint: "/v1/chat/completions".into(),
    ///         model: "small".into(),
    ///         cost_cents: Some(BigDecimal::new(25.into(), 2)),
    ///         ..NewCall::new(tenant_id, call_id, key_id, now)
    ///     };
    ///     KeysDriver::new(conn).insert_calls(&[call])
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # let now = "2026-01-01T00:00:00Z".parse().unwrap();
    /// # assert_eq!(meter(&mut conn, "tenant".into(), "key".into(), "call", now).unwrap(), 1);
    /// # assert_eq!(meter(&mut conn, "tenant".into(), "key".into(), "call", now).unwrap(), 0);
    /// # let usage = KeysDriver::new(&mut conn).fetch_key_usage(&"tenant".into(), &"key".into(), now).unwrap();
    /// # assert_eq!(usage.spend_cents, BigDecimal::new(25.into(), 2));
    /// ```
    pub fn insert_calls(&mut self, calls: &[NewCall]) -> Result<i64> {
        for (index, call) in calls.iter().enumerate() {
            call.require_storable().map_err(|source| Error::InBatch { index, source: Box::new(source) })?;
        }
        if calls.is_empty() {
            return Ok(0);
        }
        Ok(row_count(InsertCalls(CallRows::of(calls)).change(self.conn)?))
    }
}

insert_unnested! {
    CallRows<'a> into "proxy_calls" of call: NewCall {
        tenant_id: Text, &'a TenantId = &call.tenant_id;
        id: Text, &'a str = &call.id;
        api_key_id: Nullable<Text>, Option<&'a KeyId> = call.key_id.as_ref();
        user_id: Nullable<Text>, Option<&'a str> = call.user_id.as_deref();
        endpoint: Text, &'a str = &call.endpoint;
        model: Text, &'a str = &call.model;
        request_hash: Text, &'a str = &call.request_hash;
        request_json: Text, &'a str = &call.request_json;
        response_hash: Nullable<Text>, Option<&'a str> = call.response_hash.as_deref();
        response_json: Nullable<Text>, Option<&'a str> = call.response_json.as_deref();
        status_code: Nullable<Integer>, Option<i32> = call.status_code;
        error_code: Nullable<Text>, Option<&'a str> = call.error_code.as_deref();
        input_tokens: Nullable<Integer>, Option<i32> = call.input_tokens;
        output_tokens: Nullable<Integer>, Option<i32> = call.output_tokens;
        cost_cents: Nullable<Numeric>, Option<&'a BigDecimal> = call.cost_cents.as_ref();
        policy_decisions_json: Nullable<Text>, Option<&'a str> = call.policy_decisions_json.as_deref();
        was_blocked: Nullable<Bool>, Option<bool> = call.was_blocked;
        block_reason: Nullable<Text>, Option<&'a str> = call.block_reason.as_deref();
        latency_ms: Nullable<Integer>, Option<i32> = call.latency_ms;
        upstream_latency_ms: Nullable<Integer>, Option<i32> = call.upstream_latency_ms;
        replay_eligible: Nullable<Bool>, Option<bool> = call.replay_eligible;
        replayed_from_id: Nullable<Text>, Option<&'a str> = call.replayed_from_id.as_deref();
        created_at: Timestamptz, Time = call.created_at.into();
    }
}

struct InsertCalls<'a>(CallRows<'a>);

impl QueryFragment<Pg> for InsertCalls<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.0.walk_ast(out.reborrow())?;
        // The clause names no index: a table that is partitioned by time has no unique index on the id alone.
        out.push_sql(" ON CONFLICT DO NOTHING");
        Ok(())
    }
}

impl QueryId for InsertCalls<'_> {
    type QueryId = InsertCalls<'static>;
}

impl RunQueryDsl<PgConnection> for InsertCalls<'_> {}
