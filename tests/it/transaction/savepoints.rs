//! A transaction within another one.

use api_keys_driver::{Error, KeysDriver, Result, Transaction};
use diesel::connection::{AnsiTransactionManager, Connection, SimpleConnection, TransactionManager};
use diesel::prelude::*;

use super::{EngineError, freeze, is_frozen, is_open};
use crate::support::{KeyRow, migrated, tenant};

#[test]
fn an_error_within_a_savepoint_does_not_prevent_the_commit() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    Transaction::attempts(1)
        .run(&mut conn, |conn| {
            freeze(conn, "key")?;
            let caught = conn.transaction(|conn| conn.batch_execute("SELECT 1/0"));
            assert!(caught.is_err());
            Ok::<_, Error>(())
        })
        .unwrap();
    assert!(is_frozen(&mut conn, "key"));
}

#[test]
fn a_savepoint_that_the_work_left_open_ends_with_the_transaction() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    for fails in [true, false] {
        let done: Result<()> = Transaction::attempts(1).run(&mut conn, |conn| {
            AnsiTransactionManager::begin_transaction(conn)?;
            freeze(conn, "key")?;
            if fails { Err(Error::NotInTransaction) } else { Ok(()) }
        });
        assert_eq!(done.is_err(), fails);
        assert!(!is_open(&mut conn));
        assert_eq!(is_frozen(&mut conn, "key"), !fails);
    }
}

#[test]
fn within_another_transaction_a_savepoint_is_used_if_requested() {
    let (database, mut conn) = migrated();
    for id in ["a", "b"] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    let transaction = Transaction::attempts(3).or_savepoint();
    transaction.run(&mut conn, |conn| freeze(conn, "a")).expect("a transaction of its own");
    assert!(is_frozen(&mut database.connect().unwrap(), "a"));

    conn.begin_test_transaction().unwrap();
    transaction.run(&mut conn, |conn| freeze(conn, "b")).unwrap();
    assert!(is_frozen(&mut conn, "b"));
    let refused: Result<(), EngineError> = transaction.run(&mut conn, |conn| {
        KeyRow { id: "c", ..KeyRow::default() }.insert(conn);
        AnsiTransactionManager::begin_transaction(conn).unwrap();
        Err(EngineError::Refused)
    });
    assert!(matches!(refused, Err(EngineError::Refused)), "{refused:?}");
    let swallowed = transaction.run(&mut conn, |conn| {
        KeyRow { id: "d", ..KeyRow::default() }.insert(conn);
        let _ = conn.batch_execute("SELECT 1/0");
        Ok::<_, Error>(())
    });
    assert!(matches!(swallowed, Err(Error::TransactionAborted(_))), "{swallowed:?}");
    assert_eq!(
        KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap(),
        2,
        "the outer transaction continues"
    );
    drop(conn);
    assert!(!is_frozen(&mut database.connect().unwrap(), "b"), "nothing was committed");
}

#[test]
fn a_savepoint_that_the_work_left_open_ends_with_the_savepoint_of_the_work() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let transaction = Transaction::attempts(1).or_savepoint();
    conn.transaction(|conn| {
        transaction.run(conn, |conn| {
            AnsiTransactionManager::begin_transaction(conn)?;
            AnsiTransactionManager::begin_transaction(conn)?;
            freeze(conn, "key")
        })
    })
    .unwrap();
    assert!(!is_open(&mut conn));
    assert!(is_frozen(&mut database.connect().unwrap(), "key"));
}

#[test]
fn a_savepoint_that_the_work_ended_itself_does_not_end_the_outer_transaction() {
    type End = fn(&mut PgConnection) -> QueryResult<()>;

    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let transaction = Transaction::attempts(1).or_savepoint();
    let ends: [(End, bool); 4] = [
        (AnsiTransactionManager::rollback_transaction, true),
        (AnsiTransactionManager::commit_transaction, true),
        (|conn| conn.batch_execute("ROLLBACK"), false),
        (|conn| conn.batch_execute("COMMIT"), false),
    ];
    for (index, (end, goes_on)) in ends.into_iter().enumerate() {
        let outer = conn.transaction(|conn| {
            let ended = transaction.run(conn, |conn| Ok::<_, Error>(end(conn)?));
            assert!(matches!(ended, Err(Error::NotInTransaction)), "{index}: {ended:?}");
            assert_eq!(is_open(conn), goes_on, "{index}");
            freeze(conn, "key")
        });
        assert_eq!(outer.is_ok(), goes_on, "{index}: {outer:?}");
        assert!(!is_open(&mut conn));
        assert_eq!(is_frozen(&mut database.connect().unwrap(), "key"), goes_on, "{index}");
        conn.batch_execute("UPDATE api_keys SET is_frozen = false").unwrap();
    }
}

#[test]
fn a_savepoint_is_not_repeated_by_itself_but_with_the_outermost_transaction() {
    let (_database, mut conn) = migrated();
    let failing = "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'serialization_failure'; END $$";
    let transaction = Transaction::attempts(3).or_savepoint();
    let (mut outer, mut inner) = (0, 0);
    let failed: Result<()> = transaction.run(&mut conn, |conn| {
        outer += 1;
        transaction.run(conn, |conn| {
            inner += 1;
            Ok(conn.batch_execute(failing)?)
        })
    });
    assert!(matches!(failed, Err(Error::SerializationFailure(_))), "{failed:?}");
    assert_eq!((outer, inner), (3, 3));
}
