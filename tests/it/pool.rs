//! The pool and its connections: their settings, their limits, and that no text shows a password.

use std::fmt::{Debug, Write};
use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use api_keys_driver::{
    Advice, Error, EventPosition, KeyCursor, KeysDriver, Pool, PoolConfig, StatementCache, Timeouts,
};
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use diesel::prelude::*;
use diesel::r2d2::ManageConnection;
use diesel::r2d2::event::{CheckoutEvent, HandleEvent};
use proptest::test_runner::{Config, TestRunner};
use throwaway_postgres::PrivateServer;

use crate::support::{KeyRow, eventually, key, migrated, tenant};

diesel::define_sql_function!(fn current_setting(name: diesel::sql_types::Text) -> Text);

fn setting(pool: &Pool, name: &str) -> String {
    diesel::select(current_setting(name)).get_result(&mut pool.get().unwrap()).unwrap()
}

/// How long the pools of these tests wait for a connection that cannot be made.
const WAIT: Duration = Duration::from_millis(300);

/// Why a pool has no connection. On a busy machine the attempt may take longer than the wait, and the next call says why.
fn failure<M: ManageConnection>(pool: &diesel::r2d2::Pool<M>) -> Error {
    let mut failure = None;
    eventually("the pool says why", || {
        failure = Some(Error::from(pool.get().map(drop).unwrap_err()));
        !matches!(failure, Some(Error::Pool(_)))
    });
    failure.unwrap()
}

fn prepared_statements(pool: &Pool) -> usize {
    diesel::sql_query("SELECT FROM pg_prepared_statements").execute(&mut pool.get().unwrap()).unwrap()
}

#[test]
fn by_default_waiting_running_and_idling_are_limited() {
    let (database, _conn) = migrated();
    let pool = PoolConfig::new(database.url()).build().unwrap();
    assert_eq!(setting(&pool, "statement_timeout"), "30s");
    assert_eq!(setting(&pool, "lock_timeout"), "5s");
    assert_eq!(setting(&pool, "idle_in_transaction_session_timeout"), "10s");
    assert_eq!(setting(&pool, "application_name"), "api_keys_driver");
    assert_eq!(pool.as_r2d2().max_size(), 4);
    assert_eq!(pool.as_r2d2().connection_timeout(), Duration::from_secs(10));
    assert_eq!(pool.as_r2d2().max_lifetime(), Some(Duration::from_secs(30 * 60)));
    assert_eq!(pool.as_r2d2().idle_timeout(), Some(Duration::from_secs(10 * 60)));
    assert_eq!(pool.as_r2d2().min_idle(), None);
    assert!(pool.as_r2d2().test_on_check_out());
}

#[test]
fn the_pool_configuration_passes_on_the_settings_of_r2d2() {
    let (database, _conn) = migrated();
    let config = PoolConfig::new(database.url()).size(3);
    let pool = config
        .clone()
        .min_idle(2)
        .max_lifetime(Duration::from_secs(7))
        .idle_timeout(Duration::from_secs(5))
        .test_on_check_out(false)
        .build()
        .unwrap();
    assert_eq!((pool.as_r2d2().min_idle(), pool.as_r2d2().test_on_check_out()), (Some(2), false));
    assert_eq!(pool.as_r2d2().max_lifetime(), Some(Duration::from_secs(7)));
    assert_eq!(pool.as_r2d2().idle_timeout(), Some(Duration::from_secs(5)));

    let unlimited = config.max_lifetime(Duration::ZERO).idle_timeout(Duration::ZERO).min_idle(9);
    let pool = unlimited.build().unwrap();
    assert_eq!(
        (pool.as_r2d2().max_lifetime(), pool.as_r2d2().idle_timeout(), pool.as_r2d2().min_idle()),
        (None, None, Some(3))
    );
}

#[derive(Debug, Default)]
struct CountEvents(Arc<AtomicU32>);

impl HandleEvent for CountEvents {
    fn handle_checkout(&self, _: CheckoutEvent) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn an_event_handler_is_set_on_the_builder() {
    let (database, _conn) = migrated();
    let config = PoolConfig::new(database.url()).size(1);
    let counter = CountEvents::default();
    let checkouts = Arc::clone(&counter.0);
    let pool = config.builder().event_handler(Box::new(counter)).build_unchecked(config.manager()).into();
    assert_eq!(setting(&pool, "lock_timeout"), "5s", "the settings are the same");
    assert_eq!(checkouts.load(Ordering::Relaxed), 1);
}

#[test]
fn a_new_connection_of_an_old_pool_is_kept() {
    let (database, _conn) = migrated();
    let lifetime = Duration::from_millis(500);
    let pool = PoolConfig::new(database.url()).size(1).max_lifetime(lifetime).build().unwrap();
    std::thread::sleep(lifetime);
    // A busy machine may take longer than the lifetime between the two.
    let handed_out = || backend(&mut pool.get().unwrap());
    assert!((0..20).any(|_| handed_out() == handed_out()));
}

#[test]
fn the_longest_durations_are_no_error() {
    let (database, _conn) = migrated();
    let longest = |url: &str| {
        let config = PoolConfig::new(url).size(1).wait(Duration::MAX).connect_timeout(Duration::MAX);
        let config = config.max_lifetime(Duration::MAX).idle_timeout(Duration::MAX);
        config.keepalives_idle(Duration::MAX).tcp_user_timeout(Duration::MAX).build()
    };
    assert_eq!(setting(&longest(database.url()).unwrap(), "lock_timeout"), "5s");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = longest(&format!("host=127.0.0.1 port={port}")).unwrap_err();
    assert!(texts_of_error(&refused).contains("failed: Connection refused"), "{refused:?}");
}

#[test]
fn a_busy_connection_that_is_too_old_is_replaced_when_it_is_given_back() {
    let (database, _conn) = migrated();
    let lifetime = Duration::from_millis(20);
    let pool = PoolConfig::new(database.url()).size(1).max_lifetime(lifetime).build().unwrap();
    let mut conn = pool.get().unwrap();
    let first = backend(&mut conn);
    std::thread::sleep(2 * lifetime);
    drop(conn);
    assert_ne!(backend(&mut pool.get().unwrap()), first);
}

#[test]
fn settings_of_the_pool_reach_every_connection() {
    let (database, _conn) = migrated();
    let pool = PoolConfig::new(database.url())
        .size(2)
        .wait(Duration::from_millis(1500))
        .timeouts(Timeouts {
            statement: Duration::from_millis(34_567),
            lock: Duration::ZERO,
            idle_in_transaction: Duration::from_micros(1500),
        })
        .application_name("it's 100% \\ \"ours\" & more? =")
        .build()
        .unwrap();
    let _first = pool.get().unwrap();
    assert_eq!(setting(&pool, "statement_timeout"), "34567ms");
    assert_eq!(setting(&pool, "lock_timeout"), "0");
    assert_eq!(setting(&pool, "idle_in_transaction_session_timeout"), "2ms");
    assert_eq!(setting(&pool, "application_name"), "it's 100% \\ \"ours\" & more? =");
    assert_eq!(
        (pool.as_r2d2().max_size(), pool.as_r2d2().connection_timeout()),
        (2, Duration::from_millis(1500))
    );
}

#[test]
fn options_of_the_connection_string_are_kept_in_both_forms() {
    let server = PrivateServer::start_new().unwrap();
    let host = server.socket_folder().display();
    for (string, expected) in [
        (format!("postgresql:///postgres?host={host}&user=postgres"), "it's \\ here"),
        (format!("postgresql:///postgres?host={host}&user=postgres&application_name=mine"), "mine"),
        (format!("host={host} user=postgres"), "it's \\ here"),
        (format!("host={host} user=postgres application_name='mine'"), "mine"),
    ] {
        let pool = PoolConfig::new(string).application_name("it's \\ here").build().unwrap();
        assert_eq!(setting(&pool, "application_name"), expected);
    }
}

#[test]
fn a_pool_whose_connections_are_all_in_use_is_exhausted() {
    let (database, _conn) = migrated();
    let pool = PoolConfig::new(database.url()).size(1).wait(Duration::from_secs(1)).build().unwrap();
    let held = pool.get().unwrap();
    let error = pool.get().map(drop).unwrap_err();
    assert!(matches!(error, Error::Pool(_)), "{error:?}");
    assert_eq!(error.advice(), Advice::Reconnect);
    drop(held);
    pool.get().expect("the connection that was given back");
}

#[test]
fn a_connection_that_takes_longer_than_the_wait_is_not_reported_as_in_use() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let string = format!("host=127.0.0.1 port={}", silent.local_addr().unwrap().port());
    let config = PoolConfig::new(string).size(1).wait(Duration::from_millis(100));
    let pool = Pool::from(config.builder().build_unchecked(config.manager()));
    let error = pool.get().map(drop).unwrap_err();
    assert!(matches!(error, Error::Connect(_)), "{error:?}");
    assert!(texts_of_error(&error).contains("no answer within the pool's wait"), "{error:?}");
    assert_eq!(error.advice(), Advice::Reconnect);
}

#[test]
fn a_pool_of_size_zero_has_size_one() {
    let (database, _conn) = migrated();
    assert_eq!(PoolConfig::new(database.url()).size(0).build().unwrap().as_r2d2().max_size(), 1);
}

#[test]
fn with_the_statement_cache_off_a_session_keeps_neither_statements_nor_settings() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let count = |pool: &Pool| {
        for _ in 0..3 {
            assert_eq!(KeysDriver::new(&mut pool.get().unwrap()).count_keys(&tenant()).unwrap(), 1);
        }
    };
    let on = PoolConfig::new(database.url()).size(1).build().unwrap();
    count(&on);
    assert!(prepared_statements(&on) > 0);

    let off = PoolConfig::new(database.url()).size(1).statement_cache(StatementCache::Off).build().unwrap();
    count(&off);
    assert_eq!(prepared_statements(&off), 0);
    for name in ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"] {
        assert_eq!(setting(&off, name), "0", "{name}");
    }
}

#[test]
fn a_worker_that_stays_idle_in_its_transaction_loses_the_lock() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let timeouts = Timeouts { idle_in_transaction: Duration::from_millis(50), ..Timeouts::default() };
    let pool = PoolConfig::new(database.url()).timeouts(timeouts).build().unwrap();
    let mut hanging = pool.get().unwrap();
    let lost = hanging.transaction::<_, Error, _>(|hanging| {
        let _held = KeysDriver::new(hanging).fetch_key_for_update(&tenant(), &key("key"))?;
        conn.transaction::<_, Error, _>(|conn| {
            let freed = KeysDriver::new(conn).fetch_key_for_update(&tenant(), &key("key"))?;
            assert!(freed.is_some());
            Ok(())
        })?;
        KeysDriver::new(hanging).count_keys(&tenant())
    });
    assert!(matches!(lost, Err(Error::ConnectionLost(_))), "{lost:?}");
}

#[test]
fn a_connection_that_a_panic_left_in_a_transaction_is_not_returned_again() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let pool = PoolConfig::new(database.url()).size(1).build().unwrap();
    let pid = |pool: &Pool| backend(&mut pool.get().unwrap());
    let before = pid(&pool);
    let worker = pool.clone();
    std::thread::spawn(move || {
        let mut conn = worker.get().unwrap();
        conn.batch_execute("BEGIN").unwrap();
        panic!("on purpose");
    })
    .join()
    .unwrap_err();
    assert_ne!(pid(&pool), before);
}

#[test]
fn a_connection_that_is_given_back_within_a_transaction_is_not_returned_again() {
    let (database, _conn) = migrated();
    let pool = PoolConfig::new(database.url()).size(1).build().unwrap();
    let mut conn = pool.get().unwrap();
    let before = backend(&mut conn);
    AnsiTransactionManager::begin_transaction(&mut *conn).unwrap();
    drop(conn);
    assert_ne!(backend(&mut pool.get().unwrap()), before);
}

fn backend(conn: &mut PgConnection) -> i32 {
    diesel::define_sql_function!(fn pg_backend_pid() -> Integer);
    diesel::select(pg_backend_pid()).get_result(conn).unwrap()
}

/// Every text of a value that a log could contain.
fn texts(value: &(impl Debug + ?Sized)) -> String {
    format!("{value:?} {value:#?}")
}

fn texts_of_error(error: &(dyn std::error::Error + 'static)) -> String {
    let mut all = String::new();
    for error in std::iter::successors(Some(error), |error| error.source()) {
        write!(all, "{error} {error:?} {error:#?} ").unwrap();
    }
    all
}

#[test]
fn no_password_is_shown_whatever_is_wrong_with_the_connection_string() {
    let wrong = [
        "postgres://worker:s3cr3t@localhost:1/keys",
        "postgres://worker:s3cr3t@nowhere.invalid/keys",
        "postgres://worker:%s3cr3t@localhost/keys",
        "postgres://worker:a@s3cr3t@localhost/keys",
        "postgres://worker:1/s3cr3t@localhost/keys",
        "postgres://worker:s3cr3t/x@localhost/keys",
        "postgres://worker:a?s3cr3t@localhost:1/keys",
        "postgres://worker:a#s3cr3t@localhost:1/keys",
        "postgres://worker@localhost:1/keys?password=s3cr3t&s3cr3t",
        "postgres://worker:s3cr3t@[localhost/keys",
        "postgres://worker:\0s3cr3t@localhost/keys",
        "host=localhost port=1 password=s3cr3t",
        "host=localhost port=1 password=a s3cr3t",
        "host=localhost port=1 password=a s3cr3t=b",
        "host=localhost port=1 password='s3cr3t",
        "host=localhost port=s3cr3t password=s3cr3t",
        "s3cr3t",
    ];
    for string in wrong {
        let config = PoolConfig::new(string);
        assert!(!texts(&config).contains("s3cr3t"), "{config:?}");
        let error = config.connect_timeout(Duration::from_secs(1)).build().expect_err(string);
        let said = texts_of_error(&error);
        assert!(!said.contains("s3cr3t"), "{string}: {said}");
        let is_unreached = matches!(error, Error::Connect(_) | Error::UnknownHost);
        let expected = if is_unreached { Advice::Reconnect } else { Advice::Fail };
        assert_eq!(error.advice(), expected, "{said}");
        assert!(is_unreached || matches!(error, Error::ConnectionString), "{said}");
    }
    let unreadable = PoolConfig::new("postgres://worker:\0s3cr3t@localhost/keys").build().unwrap_err();
    assert!(matches!(unreadable, Error::ConnectionString), "its bytes would be shown: {unreadable:?}");
    let refused = PoolConfig::new(wrong[0]).build().unwrap_err();
    assert!(matches!(refused, Error::Connect(_)), "a server that is not there is no matter of the string");
}

#[test]
fn no_password_is_shown_by_a_pool_or_by_its_later_errors() {
    let mut server = PrivateServer::start_new().unwrap();
    let database = server.create_database().unwrap();
    let host = server.socket_folder().display().to_string();
    for string in [
        database.url().replace("user=", "password=s3cr3t&user="),
        format!("host={host} user=postgres password=s3cr3t"),
    ] {
        let pool = PoolConfig::new(string).size(1).wait(WAIT).build().unwrap();
        assert!(!texts(&pool).contains("s3cr3t") && texts(&pool).contains("PoolManager { .. }"));
        server.stop().unwrap();
        let error = failure(pool.as_r2d2());
        let said = texts_of_error(&error);
        assert!(!said.contains("s3cr3t"), "{said}");
        assert!(said.contains("connection to server"), "it says why: {said}");
        server.start().unwrap();
    }
}

/// A server whose role `worker` needs a password, and its socket folder.
fn server_with_a_password() -> (PrivateServer, String) {
    let server = PrivateServer::start_new().unwrap();
    let folder = server.socket_folder().display().to_string();
    let database = server.create_database().unwrap();
    let mut admin = database.connect().unwrap();
    admin
        .batch_execute(
            "CREATE ROLE worker LOGIN PASSWORD 'r1ght'; CREATE ROLE locked_out;
             CREATE ROLE stranger LOGIN PASSWORD 'r1ght'",
        )
        .unwrap();
    let rules = "local all postgres trust\nlocal all stranger reject\nlocal all all scram-sha-256\n";
    fs::write(server.socket_folder().join("data/pg_hba.conf"), rules).unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").unwrap();
    (server, folder)
}

#[test]
fn each_reason_for_a_failed_connection_has_its_error_at_build_and_later() {
    let (_server, folder) = server_with_a_password();
    let pool_of = |string: &str| PoolConfig::new(string).size(1).wait(WAIT);
    let right = format!("host={folder} user=worker password=r1ght dbname=postgres");
    eventually("the reload takes effect", || pool_of(&right).build().is_ok());
    for (string, expected, advice) in [
        (right.replace("r1ght", "wr0ng"), "AccessDenied", Advice::Fail),
        (right.replace(" password=r1ght", ""), "AccessDenied", Advice::Fail),
        (right.replace("worker", "nobody"), "AccessDenied", Advice::Fail),
        (right.replace("worker", "locked_out"), "AccessDenied", Advice::Fail),
        (right.replace("worker", "stranger"), "AccessDenied", Advice::Fail),
        (right.replace("dbname=postgres", "dbname=n0where"), "UnknownDatabase", Advice::Fail),
        (right.replace("dbname=postgres", "dbname='n0 \"w\" here'"), "UnknownDatabase", Advice::Fail),
        (right.replace("dbname=postgres", "dbname='n0where\n'"), "UnknownDatabase", Advice::Fail),
        (right.replace("worker", "'n0\nbody'"), "AccessDenied", Advice::Fail),
        (format!("{right} options='-c n0such=on'"), "ConnectionString", Advice::Fail),
        (format!("{right} options='-c work_mem=n0'"), "ConnectionString", Advice::Fail),
        (format!("{right} options='-c work_mem=-1'"), "ConnectionString", Advice::Fail),
        (format!("{right} options='-c shared_buffers=1GB'"), "ConnectionString", Advice::Fail),
        (format!("{right} options='-c n0thing'"), "ConnectionString", Advice::Fail),
        (format!("{right} options='-c log_statement=all'"), "ConnectionString", Advice::Fail),
        (format!("{right} options=n0"), "ConnectionString", Advice::Fail),
        (format!("{right} client_encoding=n0"), "ConnectionString", Advice::Fail),
        (format!("{right} connect_timeout=n0"), "ConnectionString", Advice::Fail),
        (format!("{right} channel_binding=require"), "Tls", Advice::Fail),
        (format!("{right} sslmode=require host=localhost port=1"), "Tls", Advice::Fail),
        (right.replace(&folder, "n0where.invalid"), "UnknownHost", Advice::Reconnect),
        (right.replace(&folder, "n0where.invalid,127.0.0.1") + " port=1,1", "Connect(", Advice::Reconnect),
        (right.replace(&folder, "127.0.0.1,n0where.invalid") + " port=1,1", "Connect(", Advice::Reconnect),
        (
            right.replace(&folder, &format!("n0where.invalid,{folder}")).replace("r1ght", "wr0ng"),
            "AccessDenied",
            Advice::Fail,
        ),
        (format!("{right} port=1"), "Connect(", Advice::Reconnect),
        (format!("{right} prt=1"), "ConnectionString", Advice::Fail),
    ] {
        let at_once = pool_of(&string).build().expect_err(&string);
        let config = pool_of(&string);
        let later = failure(&config.builder().build_unchecked(config.manager()));
        for error in [at_once, later] {
            let said = texts_of_error(&error);
            assert!(format!("{error:?}").starts_with(expected), "{string}: {said}");
            assert_eq!(error.advice(), advice, "{said}");
            for hidden in ["wr0ng", "r1ght", "n0"] {
                assert!(!said.contains(hidden), "{said}");
            }
        }
    }
}

#[test]
fn reasons_are_recognised_in_a_pool_that_the_crate_did_not_build() {
    let (database, _conn) = migrated();
    for (url, expected) in [
        (database.url().replace('?', "_n0where?"), "UnknownDatabase"),
        ("postgres://n0where.invalid/keys".into(), "UnknownHost"),
        ("n0where".into(), "ConnectionString"),
    ] {
        let manager = diesel::r2d2::ConnectionManager::<PgConnection>::new(url);
        let builder = diesel::r2d2::Pool::builder().max_size(1).connection_timeout(WAIT);
        let error = failure(&builder.build_unchecked(manager));
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
        assert!(!texts_of_error(&error).contains("n0where"), "{error:?}");
    }
}

/// An engine's own error, with one `From`.
#[derive(Debug)]
struct EngineError(Error);

impl From<Error> for EngineError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

#[test]
fn the_question_mark_operator_converts_every_error() {
    fn walk(pool: &Pool, cursor: &str, position: &str) -> Result<usize, EngineError> {
        let cursor: KeyCursor = cursor.parse()?;
        let _: EventPosition = position.parse()?;
        let mut conn = pool.get()?;
        Ok(KeysDriver::new(&mut conn).fetch_keys_after(&tenant(), Some(&cursor), 1)?.len())
    }
    fn count(pool: &Pool) -> api_keys_driver::Result<i64> {
        let mut conn = pool.get()?;
        conn.batch_execute("SELECT")?;
        KeysDriver::new(&mut conn).count_keys(&tenant())
    }
    let (database, _conn) = migrated();
    let pool = PoolConfig::new(database.url()).size(1).build().unwrap();
    let start = "0000000000000000.0.0";
    assert_eq!(count(&pool).unwrap(), 0);
    assert_eq!(walk(&pool, "00065000000000006b6579", start).unwrap(), 0);
    assert!(matches!(walk(&pool, "?", start), Err(EngineError(Error::KeyCursor))));
    assert!(matches!(walk(&pool, "00065000000000006b6579", "?"), Err(EngineError(Error::EventPosition))));
    let all_in_use = PoolConfig::new(database.url()).size(1).wait(WAIT).build().unwrap();
    let _held = all_in_use.get().unwrap();
    assert!(matches!(walk(&all_in_use, "00065000000000006b6579", start), Err(EngineError(Error::Pool(_)))));
    let refused = PgConnection::establish("host=127.0.0.1 port=1").map(drop).map_err(Error::from);
    assert!(matches!(refused, Err(Error::Connect(_))), "{refused:?}");
}

#[test]
fn the_defaults_reach_a_second_host_if_the_first_does_not_answer() {
    let server = PrivateServer::start_new().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let folder = server.socket_folder().display();
    let string = format!("host=127.0.0.1,127.0.0.1,{folder} port={port},{port},5432 user=postgres");
    let config = PoolConfig::new(string).size(1);
    let pool = Pool::from(config.builder().build_unchecked(config.manager()));
    assert_eq!(setting(&pool, "lock_timeout"), "5s");
    assert_eq!(
        pool.as_r2d2().max_lifetime(),
        Some(Duration::from_secs(60)),
        "short, because there are several hosts"
    );
}

#[test]
fn a_session_that_no_longer_fits_the_connection_string_is_not_returned() {
    for target in ["read-write", "primary"] {
        let mut server = PrivateServer::start_new().unwrap();
        let database = server.create_database().unwrap();
        let url = format!("{}&target_session_attrs={target}", database.url());
        let pool = PoolConfig::new(&url).size(1).wait(WAIT).build().unwrap();
        eventually("the pool is connected", || pool.get().is_ok());
        if target == "read-write" {
            let mut admin = database.connect().unwrap();
            admin.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
            admin.batch_execute("SELECT pg_reload_conf()").unwrap();
            eventually("the pool notices", || pool.get().is_err());
        } else {
            server.stop().unwrap();
            server.set_standby(true).unwrap();
            server.start().unwrap();
        }
        let error = failure(pool.as_r2d2());
        assert!(matches!(error, Error::Connect(_)), "{error:?}");
        assert_eq!(error.advice(), Advice::Reconnect);
        assert!(PoolConfig::new(database.url()).build().unwrap().get().is_ok(), "it can be read");
    }
}

#[test]
fn a_transaction_that_was_begun_as_sql_is_not_returned_again() {
    let (database, _conn) = migrated();
    for target in ["any", "read-write", "primary"] {
        for cache in [StatementCache::On, StatementCache::Off] {
            let url = format!("{}&target_session_attrs={target}", database.url());
            let pool = PoolConfig::new(url).size(1).statement_cache(cache).build().unwrap();
            let pid = |after: &str| {
                let mut conn = pool.get().unwrap();
                let pid = backend(&mut conn);
                let _ = conn.batch_execute(after);
                pid
            };
            for left in ["BEGIN", "BEGIN; SAVEPOINT s", "START TRANSACTION READ ONLY", "BEGIN; SELECT 1 / 0"]
            {
                assert_ne!(pid(left), pid(""), "{target}, {left}");
            }
            assert_eq!(pid("BEGIN; COMMIT"), pid(""), "{target}");
        }
    }
}

#[test]
fn the_test_of_a_connection_runs_no_foreign_function() {
    let (database, mut conn) = migrated();
    for (name, result) in [
        ("current_setting(text)", "text"),
        ("pg_is_in_recovery()", "bool"),
        ("now()", "timestamptz"),
        ("concat(text)", "text"),
    ] {
        conn.batch_execute(&format!(
            "CREATE FUNCTION {name} RETURNS {result} LANGUAGE plpgsql AS $$ BEGIN RAISE 'foreign'; END $$"
        ))
        .unwrap();
    }
    for target in ["any", "read-write", "primary"] {
        let path = "options=-c%20search_path%3Dpublic,pg_catalog";
        let url = format!("{}&target_session_attrs={target}&{path}", database.url());
        let pool = PoolConfig::new(url).size(1).build().unwrap();
        assert_eq!(pool.get().unwrap().batch_execute("SELECT 1"), Ok(()));
    }
}

#[test]
fn settings_apply_also_if_the_password_has_special_characters() {
    let server = PrivateServer::start_new().unwrap();
    let host = server.socket_folder().display();
    for string in [
        format!("postgresql://worker:a?b%2F%40%25c@/postgres?host={host}&user=postgres"),
        format!("host={host} user=postgres password='a b\\'c\\\\d'"),
        format!("host={host} user=postgres password=postgres://a:b@c/d?e=f"),
        format!("password='postgresql://' host={host} user=postgres"),
        format!("postgresql:///postgres?host={host}&user=postgres&password=a%26b"),
    ] {
        let pool = PoolConfig::new(&string).build().unwrap_or_else(|error| panic!("{string}: {error:?}"));
        assert_eq!(setting(&pool, "lock_timeout"), "5s");
    }
}

/// A text as a value of libpq's key-value pairs.
fn as_value(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A text as a part of a URL. Characters are percent-encoded, except those in `raw`.
fn in_url(text: &str, raw: &str) -> String {
    let mut encoded = String::new();
    for character in text.chars() {
        if character.is_ascii_alphanumeric() || raw.contains(character) {
            encoded.push(character);
        } else {
            character.to_string().bytes().for_each(|byte| write!(encoded, "%{byte:02X}").unwrap());
        }
    }
    encoded
}

#[test]
fn libpq_reads_the_settings_whatever_the_connection_string_contains() {
    let server = PrivateServer::start_new().unwrap();
    let folder = server.socket_folder().display().to_string();
    let texts = ("[^\\x00]{0,12}", "[^\\x00]{1,12}", "[!$&'()*+,;=?:#]{0,4}");
    TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() })
        .run(&texts, |(password, name, raw)| {
            let urls = ["postgresql", "postgres"].map(|scheme| {
                let (password, name) = (in_url(&password, &raw), in_url(&name, "!$'()*+,;:?"));
                let address = format!("{scheme}://postgres:{password}@/postgres");
                format!("{address}?application_name={name}&host={folder}")
            });
            let (password, name) = (as_value(&password), as_value(&name));
            let pairs = format!("password={password} host={folder} application_name={name} user=postgres");
            for string in [&urls[0], &urls[1], &pairs] {
                let as_it_is =
                    PgConnection::establish(string).unwrap_or_else(|error| panic!("{string}: {error}"));
                let pool =
                    PoolConfig::new(string.as_str()).size(1).application_name("not this").build().unwrap();
                let named = |mut conn: PgConnection| -> String {
                    diesel::select(current_setting("application_name")).get_result(&mut conn).unwrap()
                };
                assert_eq!(setting(&pool, "application_name"), named(as_it_is), "{string}");
                assert_eq!(setting(&pool, "lock_timeout"), "5s", "{string}");
            }
            Ok(())
        })
        .unwrap();
}
