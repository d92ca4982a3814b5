//! The pool and its connections: what they are set to, when they run out, and what nobody gets to see.

use std::fmt::{Debug, Write};
use std::time::Duration;

use api_keys_driver::{Advice, Error, KeysDriver, Pool, PoolConfig, StatementCache, Timeouts};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::PrivateServer;

use crate::support::{KeyRow, key, migrated, tenant};

diesel::define_sql_function!(fn current_setting(name: diesel::sql_types::Text) -> Text);

fn setting(pool: &Pool, name: &str) -> String {
    diesel::select(current_setting(name)).get_result(&mut pool.get().unwrap()).unwrap()
}

fn prepared_statements(pool: &Pool) -> usize {
    diesel::sql_query("SELECT FROM pg_prepared_statements").execute(&mut pool.get().unwrap()).unwrap()
}

#[test]
fn by_default_nobody_waits_runs_or_sits_idle_for_ever() {
    let (database, _conn) = migrated();
    let pool = PoolConfig::new(database.url()).build().unwrap();
    assert_eq!(setting(&pool, "statement_timeout"), "30s");
    assert_eq!(setting(&pool, "lock_timeout"), "5s");
    assert_eq!(setting(&pool, "idle_in_transaction_session_timeout"), "10s");
    assert_eq!(setting(&pool, "application_name"), "api_keys_driver");
    assert_eq!(pool.max_size(), 4);
    assert_eq!(pool.connection_timeout(), Duration::from_secs(5));
}

#[test]
fn what_is_set_reaches_every_connection() {
    let (database, _conn) = migrated();
    let pool = PoolConfig::new(database.url())
        .size(2)
        .wait(Duration::from_millis(1500))
        .timeouts(Timeouts {
            statement: Duration::from_millis(1),
            lock: Duration::ZERO,
            idle_in_transaction: Duration::from_micros(1500),
        })
        .application_name("it's 100% \\ \"ours\" & more? =")
        .build()
        .unwrap();
    let _first = pool.get().unwrap();
    assert_eq!(setting(&pool, "statement_timeout"), "1ms");
    assert_eq!(setting(&pool, "lock_timeout"), "0");
    assert_eq!(setting(&pool, "idle_in_transaction_session_timeout"), "2ms");
    assert_eq!(setting(&pool, "application_name"), "it's 100% \\ \"ours\" & more? =");
    assert_eq!((pool.max_size(), pool.connection_timeout()), (2, Duration::from_millis(1500)));
}

#[test]
fn what_the_connection_string_sets_itself_stands_in_both_of_its_forms() {
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
    let error = pool.get().map(drop).map_err(Error::from).unwrap_err();
    assert!(matches!(error, Error::Pool(_)), "{error:?}");
    assert_eq!(error.advice(), Advice::Reconnect);
    drop(held);
    pool.get().expect("the connection that was given back");
}

#[test]
fn a_pool_of_none_is_a_pool_of_one() {
    let (database, _conn) = migrated();
    assert_eq!(PoolConfig::new(database.url()).size(0).build().unwrap().max_size(), 1);
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
fn a_worker_that_hangs_in_its_transaction_loses_the_lock() {
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
fn a_connection_that_a_panic_left_in_a_transaction_is_not_handed_out_again() {
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

fn backend(conn: &mut PgConnection) -> i32 {
    diesel::define_sql_function!(fn pg_backend_pid() -> Integer);
    diesel::select(pg_backend_pid()).get_result(conn).unwrap()
}

/// Everything that a log could hold of a value.
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
        let expected = if matches!(error, Error::Connect(_)) { Advice::Reconnect } else { Advice::Fail };
        assert_eq!(error.advice(), expected, "{said}");
        assert!(matches!(error, Error::Connect(_) | Error::ConnectionString), "{said}");
    }
    let unreadable = PoolConfig::new("postgres://worker:\0s3cr3t@localhost/keys").build().unwrap_err();
    assert!(matches!(unreadable, Error::ConnectionString), "its bytes would be shown: {unreadable:?}");
    let refused = PoolConfig::new(wrong[0]).build().unwrap_err();
    assert!(matches!(refused, Error::Connect(_)), "a server that is not there is no matter of the string");
}

#[test]
fn no_password_is_shown_by_a_pool_or_by_what_it_fails_with_later() {
    let mut server = PrivateServer::start_new().unwrap();
    let database = server.create_database().unwrap();
    let host = server.socket_folder().display().to_string();
    for string in [
        database.url().replace("user=", "password=s3cr3t&user="),
        format!("host={host} user=postgres password=s3cr3t"),
    ] {
        let pool = PoolConfig::new(string).size(1).wait(Duration::from_millis(300)).build().unwrap();
        assert!(!texts(&pool).contains("s3cr3t"));
        server.stop().unwrap();
        let error = pool.get().map(drop).map_err(Error::from).unwrap_err();
        let said = texts_of_error(&error);
        assert!(!said.contains("s3cr3t"), "{said}");
        assert!(said.contains("connection to server"), "it says why: {said}");
        server.start().unwrap();
    }
}

#[test]
fn a_password_with_odd_characters_does_not_get_in_the_way_of_the_settings() {
    let server = PrivateServer::start_new().unwrap();
    let host = server.socket_folder().display();
    for string in [
        format!("postgresql://worker:a?b%2F%40%25c@/postgres?host={host}&user=postgres"),
        format!("host={host} user=postgres password='a b\\'c\\\\d'"),
        format!("postgresql:///postgres?host={host}&user=postgres&password=a%26b"),
    ] {
        let pool = PoolConfig::new(&string).build().unwrap_or_else(|error| panic!("{string}: {error:?}"));
        assert_eq!(setting(&pool, "lock_timeout"), "5s");
    }
}
