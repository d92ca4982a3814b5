//! An error whose advice is to take another connection marks its connection as broken. The pool does not return that
//! connection again, for each method, and even if later statements on it succeed.

use anyhow::Context;
use api_keys_driver::schema::api_keys;
use api_keys_driver::{Advice, Error, KeysDriver, Pool, PoolConfig, Transaction};
use diesel::connection::{Connection, InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;
use diesel::r2d2::ConnectionManager;
use throwaway_postgres::Database;

use crate::every_method::{Input, METHODS, Method};
use crate::support::{CallRow, KeyRow, key, migrated, statements_of, tenant};

fn one_connection(database: &Database) -> Pool {
    PoolConfig::new(database.url()).size(1).build().unwrap()
}

fn backend(conn: &mut PgConnection) -> i32 {
    diesel::define_sql_function!(fn pg_backend_pid() -> Integer);
    diesel::select(pg_backend_pid()).get_result(conn).unwrap()
}

/// Calls a method in a transaction, as an engine does.
fn call(conn: &mut PgConnection, method: &Method) -> api_keys_driver::Result<String> {
    conn.transaction(|conn| (method.call)(conn, &Input::default()))
}

/// Whether the method only answers within a transaction.
fn needs_a_transaction(conn: &mut PgConnection, method: &Method) -> bool {
    matches!((method.call)(conn, &Input::default()), Err(Error::NotInTransaction))
}

/// Checks that the method's error marks the connection as broken, both inside and outside a transaction.
fn assert_healed(pool: &Pool, method: &Method, spoil: &str) {
    let needs_a_transaction = needs_a_transaction(&mut pool.get().unwrap(), method);
    for in_transaction in [true, false] {
        if needs_a_transaction && !in_transaction {
            continue;
        }
        let mut conn = pool.get().unwrap();
        let spoiled = backend(&mut conn);
        call(&mut conn, method).unwrap_or_else(|error| panic!("{}: {error:?}", method.name));
        conn.batch_execute(spoil).unwrap();
        let failed = if in_transaction {
            call(&mut conn, method)
        } else {
            (method.call)(&mut conn, &Input::default())
        };
        let Err(error) = failed else {
            assert!(spoil.contains("read_only"), "{} takes no notice of {spoil}", method.name);
            drop(conn);
            pool.get().unwrap().batch_execute("RESET ALL").unwrap();
            return;
        };
        assert_eq!(error.advice(), Advice::Reconnect, "{}: {error:?}", method.name);
        conn.batch_execute("SELECT").expect("it looks healthy");
        drop(conn);
        let mut conn = pool.get().unwrap();
        assert_ne!(backend(&mut conn), spoiled, "{} after {spoil}", method.name);
        call(&mut conn, method).unwrap_or_else(|error| panic!("{}: {error:?}", method.name));
    }
}

#[test]
fn a_session_without_its_prepared_statements_is_dropped_by_the_pool() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    CallRow::default().insert(&mut conn);
    let pool = one_connection(&database);
    for method in METHODS {
        assert_healed(&pool, method, "DEALLOCATE ALL");
    }
}

#[test]
fn a_read_only_session_is_dropped_by_the_pool() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    CallRow::default().insert(&mut conn);
    let pool = one_connection(&database);
    for method in METHODS {
        assert_healed(&pool, method, "SET default_transaction_read_only = on");
    }
}

#[test]
fn an_altered_column_makes_one_call_of_each_connection_fail() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let pool = PoolConfig::new(database.url()).size(2).build().unwrap();
    let count_names = || -> api_keys_driver::Result<usize> {
        Ok(KeysDriver::new(&mut *pool.get()?).fetch_key_by_id(&tenant(), &key("key"))?.map_or(0, |_| 1))
    };
    let freeze = || -> api_keys_driver::Result<()> {
        pool.get()?.transaction(|conn| {
            let mut keys = KeysDriver::new(conn);
            let locked = keys.fetch_key_for_update(&tenant(), &key("key"))?.expect("the key");
            keys.update_key_unfrozen(locked).map(drop)
        })
    };
    for length in 150..153 {
        let both = [pool.get().unwrap(), pool.get().unwrap()];
        for mut conn in both {
            KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("key")).unwrap();
            let locked = conn.transaction(|conn| {
                KeysDriver::new(conn).fetch_key_for_update(&tenant(), &key("key")).map(drop)
            });
            locked.unwrap();
        }
        conn.batch_execute(&format!("ALTER TABLE api_keys ALTER COLUMN name TYPE varchar({length})"))
            .unwrap();
        let mut failures = 0;
        for _ in 0..6 {
            for failed in [count_names().map(drop), freeze()].into_iter().filter_map(Result::err) {
                assert!(matches!(failed, Error::PreparedStatementLost(_)), "{failed:?}");
                failures += 1;
            }
        }
        assert!((1..=2).contains(&failures), "{failures} failures with two connections");
    }
}

#[test]
fn an_error_of_an_engines_own_statement_marks_its_connection_as_broken() {
    type Statement = fn(&mut PgConnection) -> QueryResult<()>;

    fn names(conn: &mut PgConnection) -> QueryResult<()> {
        api_keys::table.select(api_keys::name).load::<String>(conn).map(drop)
    }
    fn rename(conn: &mut PgConnection) -> QueryResult<()> {
        diesel::update(api_keys::table).set(api_keys::name.eq("new")).execute(conn).map(drop)
    }
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let pool = one_connection(&database);
    let read_only = "SET default_transaction_read_only = on";
    let failing: [(&str, Statement); 5] = [
        ("DEALLOCATE ALL", names),
        ("DEALLOCATE ALL", |conn| conn.transaction(names)),
        (read_only, rename),
        (read_only, |conn| conn.transaction(rename)),
        ("DEALLOCATE ALL", |conn| conn.batch_execute("EXECUTE missing")),
    ];
    for (index, (spoil, statement)) in failing.into_iter().enumerate() {
        let mut conn = pool.get().unwrap();
        let spoiled = backend(&mut conn);
        names(&mut conn).unwrap();
        conn.batch_execute(spoil).unwrap();
        let error = Error::from(statement(&mut conn).unwrap_err());
        assert_eq!(error.advice(), Advice::Reconnect, "{index}: {error:?}");
        conn.batch_execute("SELECT").expect("it looks healthy");
        drop(conn);
        assert_ne!(backend(&mut pool.get().unwrap()), spoiled, "{index}");
    }
    let mut conn = pool.get().unwrap();
    let kept = backend(&mut conn);
    conn.batch_execute("SELECT 1 / 0").unwrap_err();
    drop(conn);
    assert_eq!(
        backend(&mut pool.get().unwrap()),
        kept,
        "an error that has another advice costs no connection"
    );
}

#[test]
fn with_an_instrumentation_of_the_engine_errors_of_the_crates_methods_are_still_noticed() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let pool = one_connection(&database);
    let mut conn = pool.get().unwrap();
    let spoiled = backend(&mut conn);
    conn.set_instrumentation(|_: InstrumentationEvent<'_>| ());
    conn.batch_execute("SET default_transaction_read_only = on").unwrap();
    let failed =
        conn.transaction(|conn| KeysDriver::new(conn).fetch_key_for_update(&tenant(), &key("key")).map(drop));
    assert!(matches!(failed, Err(Error::ReadOnly(_))), "{failed:?}");
    drop(conn);
    assert_ne!(backend(&mut pool.get().unwrap()), spoiled);
}

#[test]
fn a_pool_with_diesels_own_manager_recovers_too() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let manager = ConnectionManager::<PgConnection>::new(database.url());
    let pool = diesel::r2d2::Pool::builder().max_size(1).build(manager).unwrap();
    let find = |conn: &mut PgConnection| KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key("key"));
    for (length, in_transaction) in [(150, false), (151, true)] {
        find(&mut pool.get().unwrap()).unwrap();
        conn.batch_execute(&format!("ALTER TABLE api_keys ALTER COLUMN name TYPE varchar({length})"))
            .unwrap();
        let mut lost = pool.get().unwrap();
        let failed = if in_transaction {
            Transaction::attempts(1).run(&mut lost, |conn| find(conn))
        } else {
            find(&mut lost)
        };
        assert!(matches!(failed, Err(Error::PreparedStatementLost(_))), "{failed:?}");
        drop(lost);
        find(&mut pool.get().unwrap()).unwrap();
    }
}

#[test]
fn an_autocommit_change_on_a_lost_connection_has_an_unknown_outcome() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    CallRow::default().insert(&mut conn);
    let (mut changes, mut reads) = (0, 0);
    for method in METHODS {
        let mut lost = database.connect().unwrap();
        if needs_a_transaction(&mut lost, method) {
            continue;
        }
        let (_, sent) = statements_of(&mut lost, |conn| (method.call)(conn, &Input::default()));
        let is_change = ["INSERT INTO", "UPDATE \"", "DELETE FROM"].iter().any(|verb| sent[0].contains(verb));
        let kill = format!("SELECT pg_terminate_backend({}, 10000)", backend(&mut lost));
        conn.batch_execute(&kill).unwrap();
        let error = (method.call)(&mut lost, &Input::default()).unwrap_err();
        let expected = if is_change { Advice::CheckOutcome } else { Advice::Reconnect };
        assert_eq!(error.advice(), expected, "{}: {error:?}", method.name);
        let again = (method.call)(&mut lost, &Input::default()).unwrap_err();
        assert_eq!(again.advice(), Advice::Reconnect, "nothing was sent: {}: {again:?}", method.name);
        *if is_change { &mut changes } else { &mut reads } += 1;
    }
    assert!(changes >= 3 && reads >= 10, "{changes} changes, {reads} reads");

    let mut lost = database.connect().unwrap();
    let error = lost.transaction(|lost| {
        let kill = format!("SELECT pg_terminate_backend({}, 10000)", backend(lost));
        conn.batch_execute(&kill)?;
        KeysDriver::new(lost).update_all_keys_revoked(&tenant(), Input::default().time, None)
    });
    let error = error.unwrap_err();
    assert!(matches!(error, Error::ConnectionLost(_)), "a transaction is undone: {error:?}");
}

#[test]
fn a_failed_statement_of_an_engine_marks_the_connection_within_a_transaction() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let pool = one_connection(&database);
    let mut conn = pool.get().unwrap();
    let before = backend(&mut conn);
    let failed: anyhow::Result<()> = Transaction::attempts(1).run(&mut conn, |conn| {
        conn.batch_execute("SET TRANSACTION READ ONLY; DELETE FROM api_keys").context("the engine's own")?;
        Ok(())
    });
    assert!(failed.is_err());
    conn.batch_execute("SELECT").expect("it looks healthy");
    drop(conn);
    assert_ne!(backend(&mut pool.get().unwrap()), before);
}
