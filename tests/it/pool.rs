//! The settings and the limits of a pool and its connections.

mod connection_strings;
mod dropped;
mod failures;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use api_keys_driver::{Error, KeysDriver, Pool, PoolConfig, StatementCache, Timeouts};
use diesel::prelude::*;
use diesel::r2d2::ManageConnection;
use diesel::r2d2::event::{CheckoutEvent, HandleEvent};
use throwaway_postgres::PrivateServer;

use self::failures::texts_of_error;
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

fn backend(conn: &mut PgConnection) -> i32 {
    diesel::define_sql_function!(fn pg_backend_pid() -> Integer);
    diesel::select(pg_backend_pid()).get_result(conn).unwrap()
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
