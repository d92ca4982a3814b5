//! What the tests share: a database, rows to put in it, and the statements that were sent.

use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use api_keys_driver::schema::{api_keys, proxy_calls};
use api_keys_driver::{BigDecimal, KeyId, KeyUsageSnapshot, TenantId, migrate};
use chrono::{DateTime, Utc};
use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;
use throwaway_postgres::{Database, PrivateServer};

/// A tenant's id. The existing service takes no other form, and fixtures are used in both worlds.
pub(crate) const TENANT: &str = "11111111-1111-1111-1111-111111111111";
/// Another tenant's id.
pub(crate) const OTHER: &str = "22222222-2222-2222-2222-222222222222";

/// A migrated database and a connection to it.
pub(crate) fn migrated() -> (Database, PgConnection) {
    let database =
        throwaway_postgres::empty().and_then(|empty| empty.prepare(migrate)).expect("a migrated database");
    let conn = database.connect().expect("a connection");
    (database, conn)
}

/// A migrated database on a server of this process alone. Who follows events there waits for no
/// transaction of another process.
pub(crate) fn migrated_apart() -> (Database, PgConnection) {
    static SERVER: LazyLock<PrivateServer> =
        LazyLock::new(|| PrivateServer::start_new().expect("a private server"));

    let database =
        SERVER.create_database().and_then(|empty| empty.prepare(migrate)).expect("a migrated database");
    let conn = database.connect().expect("a connection");
    (database, conn)
}

/// The database of the existing service before this crate's migrations, with its tenants; `None`
/// where the service's schema is not beside the crate.
pub(crate) fn existing_service() -> Option<(Database, PgConnection)> {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/existing_service/schema.sql");
    let Ok(schema) = std::fs::read_to_string(schema) else {
        eprintln!("skipped: the existing service's schema is not beside the crate");
        return None;
    };
    let database = throwaway_postgres::empty().expect("an empty database");
    let mut conn = database.connect().expect("a connection");
    conn.batch_execute(&schema).expect("the service's schema");
    conn.batch_execute(&format!(
        "INSERT INTO tenants (id, name, slug) VALUES ('{TENANT}', 'One', 'one'), ('{OTHER}', 'Two', 'two')"
    ))
    .expect("two tenants");
    Some((database, conn))
}

pub(crate) fn tenant() -> TenantId {
    TenantId::from(TENANT)
}

pub(crate) fn other() -> TenantId {
    TenantId::from(OTHER)
}

pub(crate) fn key(id: &str) -> KeyId {
    KeyId::from(id)
}

/// A moment, written as RFC 3339.
pub(crate) fn at(time: &str) -> DateTime<Utc> {
    time.parse().expect("a time in RFC 3339")
}

/// A decimal, written as text.
pub(crate) fn decimal(text: &str) -> BigDecimal {
    text.parse().expect("a decimal")
}

/// A row of `api_keys`. What a test does not name is ordinary.
#[derive(Clone, Debug, Insertable)]
#[diesel(table_name = api_keys)]
pub(crate) struct KeyRow<'a> {
    pub(crate) id: &'a str,
    pub(crate) tenant_id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) key_prefix: &'a str,
    /// The id, unless a test names another.
    pub(crate) key_hash: Option<&'a str>,
    pub(crate) permissions_json: Option<&'a str>,
    pub(crate) allowed_workers_json: Option<&'a str>,
    pub(crate) rate_limit_rpm: Option<i32>,
    pub(crate) max_concurrent_runs: Option<i32>,
    pub(crate) status: &'a str,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) revoked_at: Option<DateTime<Utc>>,
    pub(crate) revoked_reason: Option<&'a str>,
    pub(crate) last_used_at: Option<DateTime<Utc>>,
    pub(crate) total_requests: i64,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) is_synthetic: bool,
    pub(crate) is_frozen: bool,
    pub(crate) frozen_at: Option<DateTime<Utc>>,
}

impl Default for KeyRow<'_> {
    fn default() -> Self {
        Self {
            id: "key",
            tenant_id: TENANT,
            name: "Production",
            key_prefix: "sk-live-abcd",
            key_hash: None,
            permissions_json: None,
            allowed_workers_json: None,
            rate_limit_rpm: None,
            max_concurrent_runs: None,
            status: "active",
            expires_at: None,
            revoked_at: None,
            revoked_reason: None,
            last_used_at: None,
            total_requests: 0,
            created_at: at("2026-01-01T00:00:00Z"),
            is_synthetic: false,
            is_frozen: false,
            frozen_at: None,
        }
    }
}

impl KeyRow<'_> {
    pub(crate) fn insert(&self, conn: &mut PgConnection) {
        let row = Self { key_hash: self.key_hash.or(Some(self.id)), ..self.clone() };
        diesel::insert_into(api_keys::table).values(&row).execute(conn).expect("a key");
    }
}

/// A row of `proxy_calls`. What a test does not name is ordinary.
#[derive(Clone, Debug, Insertable)]
#[diesel(table_name = proxy_calls)]
pub(crate) struct CallRow<'a> {
    pub(crate) id: &'a str,
    pub(crate) tenant_id: &'a str,
    pub(crate) api_key_id: Option<&'a str>,
    pub(crate) endpoint: &'a str,
    pub(crate) model: &'a str,
    pub(crate) request_hash: &'a str,
    pub(crate) request_json: &'a str,
    pub(crate) cost_cents: Option<BigDecimal>,
    pub(crate) was_blocked: Option<bool>,
    pub(crate) replayed_from_id: Option<&'a str>,
    pub(crate) created_at: DateTime<Utc>,
}

impl Default for CallRow<'_> {
    fn default() -> Self {
        Self {
            id: "call",
            tenant_id: TENANT,
            api_key_id: Some("key"),
            endpoint: "/v1/chat/completions",
            model: "small",
            request_hash: "hash",
            request_json: "{}",
            cost_cents: None,
            was_blocked: Some(false),
            replayed_from_id: None,
            created_at: at("2026-01-01T00:00:00Z"),
        }
    }
}

impl CallRow<'_> {
    pub(crate) fn insert(&self, conn: &mut PgConnection) {
        diesel::insert_into(proxy_calls::table).values(self).execute(conn).expect("a call");
    }
}

/// The statements that `work` sent, each as SQL with its bind values behind `-- binds:`.
pub(crate) fn statements_of<T>(
    conn: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> T,
) -> (T, Vec<String>) {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&sent);
    conn.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::StartQuery { query, .. } = event {
            log.lock().expect("no panic while logging").push(query.to_string());
        }
    });
    let answer = work(conn);
    conn.set_instrumentation(|_: InstrumentationEvent<'_>| ());
    let sent = std::mem::take(&mut *sent.lock().expect("no panic while logging"));
    (answer, sent)
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::yield_now();
    }
}

/// Waits until some session of the database waits for a lock.
pub(crate) fn wait_until_one_waits(conn: &mut PgConnection) {
    let waiting =
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("somebody waits", || diesel::sql_query(waiting).execute(conn).unwrap() > 0);
}

/// A snapshot with other fields: a literal of one does not compile outside the crate.
macro_rules! with {
    ($snapshot:expr, $($field:ident: $value:expr),* $(,)?) => {{
        let mut changed = $snapshot;
        $(changed.$field = $value;)*
        changed
    }};
}
pub(crate) use with;

/// Asserts each named field of a snapshot.
macro_rules! assert_fields {
    ($snapshot:expr, $($field:ident: $value:expr),* $(,)?) => {{
        let snapshot = $snapshot.clone();
        assert_eq!(snapshot, $crate::support::with!(snapshot.clone(), $($field: $value),*));
    }};
}
pub(crate) use assert_fields;

/// What calls add up to.
pub(crate) fn usage(request_count: i64, spend_cents: &str) -> KeyUsageSnapshot {
    with!(KeyUsageSnapshot::default(), request_count: request_count, spend_cents: decimal(spend_cents))
}
