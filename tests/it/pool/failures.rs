//! Why a connection fails, and that no text shows a password.

use std::fmt::{Debug, Write};
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use api_keys_driver::{Advice, Error, EventPosition, KeyCursor, KeysDriver, Pool, PoolConfig};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::PrivateServer;

use super::{WAIT, failure};
use crate::support::{eventually, migrated, tenant};

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

/// Every text of a value that a log could contain.
fn texts(value: &(impl Debug + ?Sized)) -> String {
    format!("{value:?} {value:#?}")
}

pub(super) fn texts_of_error(error: &(dyn std::error::Error + 'static)) -> String {
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
