//! What the tests share: databases, the statements that were sent, and waits. Rows, keys and snapshots have their own
//! files.

pub(crate) mod events;
mod keys;
pub(crate) mod plans;
pub(crate) mod prepared;
mod rows;
mod snapshots;
pub(crate) mod usage;

use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use api_keys_driver::{BigDecimal, KeyId, TenantId, migrate};
use chrono::{DateTime, Utc};
use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use throwaway_postgres::{Database, PrivateServer};

pub(crate) use self::keys::{fetch, freeze, ids, new_key, revocation_of, unfreeze, with_locked};
pub(crate) use self::plans::plans_of;
pub(crate) use self::rows::{CallRow, KeyRow};
pub(crate) use self::snapshots::{assert_fields, usage_of, with};

/// A tenant's id, in the form that the existing service requires.
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

/// The maximum number of characters of a column, if it is limited.
pub(crate) fn longest(conn: &mut PgConnection, table: &str, column: &str) -> Option<usize> {
    #[derive(QueryableByName)]
    struct Length {
        #[diesel(sql_type = Nullable<Integer>)]
        length: Option<i32>,
    }

    let Length { length } = diesel::sql_query(
        "SELECT character_maximum_length::int AS length FROM information_schema.columns
         WHERE table_name = $1 AND column_name = $2",
    )
    .bind::<Text, _>(table)
    .bind::<Text, _>(column)
    .get_result(conn)
    .expect("a column");
    length.map(|length| usize::try_from(length).expect("a length"))
}

/// A migrated database on a server that only this process uses. Followers there do not wait for transactions of other
/// processes.
pub(crate) fn migrated_apart() -> (Database, PgConnection) {
    let (database, mut conn) = empty_apart();
    migrate(&mut conn).expect("a migrated database");
    (database, conn)
}

/// An empty database on the server of [`migrated_apart`].
pub(crate) fn empty_apart() -> (Database, PgConnection) {
    static SERVER: LazyLock<PrivateServer> =
        LazyLock::new(|| PrivateServer::start_new().expect("a private server"));

    database_of(&SERVER)
}

fn database_of(server: &PrivateServer) -> (Database, PgConnection) {
    let database = server.create_database().expect("an empty database");
    let conn = database.connect().expect("a connection");
    (database, conn)
}

/// A private server with these settings.
pub(crate) fn server_with(settings: &str) -> PrivateServer {
    let mut server = PrivateServer::start_new().expect("a private server");
    let mut conn = PgConnection::establish(&server.url()).expect("a connection");
    conn.batch_execute(settings).expect("settings that the server takes");
    drop(conn);
    server.stop().expect("a stop");
    server.start().expect("a start");
    server
}

/// The database of the existing service before this crate's migrations, with its tenants. `None` if the service's
/// schema is not next to the crate.
pub(crate) fn existing_service() -> Option<(Database, PgConnection)> {
    existing_service_in(|| {
        let database = throwaway_postgres::empty().expect("an empty database");
        let conn = database.connect().expect("a connection");
        (database, conn)
    })
}

/// The same on the server of [`migrated_apart`]. Counting there does not wait for transactions of other processes.
pub(crate) fn existing_service_apart() -> Option<(Database, PgConnection)> {
    existing_service_in(empty_apart)
}

fn existing_service_in(empty: fn() -> (Database, PgConnection)) -> Option<(Database, PgConnection)> {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/existing_service/schema.sql");
    let Ok(schema) = std::fs::read_to_string(schema) else {
        eprintln!("skipped: the existing service's schema is not beside the crate");
        return None;
    };
    let (database, mut conn) = empty();
    conn.batch_execute(&schema).expect("the service's schema");
    conn.batch_execute(&format!(
        "INSERT INTO tenants (id, name, slug) VALUES ('{TENANT}', 'One', 'one'), ('{OTHER}', 'Two', 'two')"
    ))
    .expect("two tenants");
    Some((database, conn))
}

/// The database of the existing service, with calls that are partitioned by month. One month has two partitions.
pub(crate) fn partitioned_service() -> Option<(Database, PgConnection)> {
    let (database, mut conn) = existing_service_apart()?;
    conn.batch_execute(
        "ALTER TABLE proxy_calls RENAME TO plain;
         CREATE TABLE proxy_calls (LIKE plain INCLUDING DEFAULTS, PRIMARY KEY (id, created_at))
             PARTITION BY RANGE (created_at);
         DROP TABLE plain;
         CREATE TABLE calls_2025 PARTITION OF proxy_calls FOR VALUES FROM (MINVALUE) TO ('2026-01-01Z');
         CREATE TABLE calls_2026_01 PARTITION OF proxy_calls FOR VALUES FROM ('2026-01-01Z') TO ('2026-02-01Z')
             PARTITION BY RANGE (created_at);
         CREATE TABLE calls_2026_01_a PARTITION OF calls_2026_01 FOR VALUES FROM ('2026-01-01Z') TO ('2026-01-16Z');
         CREATE TABLE calls_2026_01_b PARTITION OF calls_2026_01 FOR VALUES FROM ('2026-01-16Z') TO ('2026-02-01Z');
         CREATE TABLE calls_later PARTITION OF proxy_calls DEFAULT",
    )
    .expect("a partitioned table of calls");
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

/// A time, written as RFC 3339.
pub(crate) fn at(time: &str) -> DateTime<Utc> {
    time.parse().expect("a time in RFC 3339")
}

/// A decimal, written as text.
pub(crate) fn decimal(text: &str) -> BigDecimal {
    text.parse().expect("a decimal")
}

/// The statements that `work` sent, each as SQL with its bind values after `-- binds:`.
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

/// How long a test waits for what must happen. A busy machine needs much longer than a quiet one, and followers wait for
/// the transactions of other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until every transaction of the server that began before now has ended, also those of other tests, because
/// followers wait for them.
pub(crate) fn wait_for_open_transactions(conn: &mut PgConnection) {
    let now: i64 =
        diesel::dsl::sql::<BigInt>("SELECT pg_current_xact_id()::text::bigint").get_result(conn).unwrap();
    let ended = format!("SELECT WHERE pg_snapshot_xmin(pg_current_snapshot())::text::bigint > {now}");
    eventually("older transactions end", || diesel::sql_query(&ended).execute(conn).unwrap() > 0);
}

/// Waits until some session of the database waits for a lock.
pub(crate) fn wait_until_one_waits(conn: &mut PgConnection) {
    let waiting =
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("somebody waits", || diesel::sql_query(waiting).execute(conn).unwrap() > 0);
}
