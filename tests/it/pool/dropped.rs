//! Connections that a pool does not return again.

use std::time::Duration;

use api_keys_driver::{Advice, Error, Pool, PoolConfig, StatementCache};
use diesel::connection::{AnsiTransactionManager, SimpleConnection, TransactionManager};
use throwaway_postgres::PrivateServer;

use super::{WAIT, backend, failure};
use crate::support::{KeyRow, eventually, migrated};

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
