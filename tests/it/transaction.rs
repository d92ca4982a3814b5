//! A transaction that cannot report a commit that did not happen.

use std::thread;
use std::time::Duration;

use api_keys_driver::{Advice, Error, KeysDriver, PoolConfig, Result, Timeouts, Transaction};
use diesel::connection::{AnsiTransactionManager, Connection, SimpleConnection, TransactionManager};
use diesel::prelude::*;

use crate::support::{KeyRow, at, key, migrated, statements_of, tenant, wait_until_one_waits};

#[derive(Debug, thiserror::Error)]
enum EngineError {
    #[error("refused")]
    Refused,
    #[error(transparent)]
    Transparent(#[from] Error),
}

#[derive(Debug, thiserror::Error)]
#[error("the engine failed")]
struct Wrapped(#[from] Error);

fn freeze(conn: &mut PgConnection, id: &str) -> Result<()> {
    let mut keys = KeysDriver::new(conn);
    let locked = keys.fetch_key_for_update(&tenant(), &key(id))?.expect("the key");
    keys.update_key_frozen(locked, at("2026-06-01T12:00:00Z")).map(drop)
}

fn is_frozen(conn: &mut PgConnection, id: &str) -> bool {
    KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key(id)).unwrap().unwrap().is_frozen
}

fn is_open(conn: &mut PgConnection) -> bool {
    AnsiTransactionManager::transaction_manager_status_mut(conn).transaction_depth().unwrap().is_some()
}

#[test]
fn what_answers_ok_is_committed_and_returned() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let answer = Transaction::attempts(1).run(&mut conn, |conn| freeze(conn, "key").map(|()| 7)).unwrap();
    assert_eq!(answer, 7);
    assert!(!is_open(&mut conn));
    assert!(is_frozen(&mut database.connect().unwrap(), "key"));
}

#[test]
fn an_error_of_the_engine_undoes_the_work_and_is_returned_as_it_is() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut runs = 0;
    let refused: Result<(), _> = Transaction::attempts(3).run(&mut conn, |conn| {
        runs += 1;
        freeze(conn, "key")?;
        Err(EngineError::Refused)
    });
    assert!(matches!(refused, Err(EngineError::Refused)), "{refused:?}");
    assert_eq!(runs, 1);
    assert!(!is_open(&mut conn));
    assert!(!is_frozen(&mut conn, "key"));
}

#[test]
fn an_error_that_the_work_swallows_is_not_reported_as_a_commit() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let swallow = |conn: &mut PgConnection| {
        freeze(conn, "key")?;
        let _ = conn.batch_execute("SELECT 1/0");
        Ok::<_, Error>(())
    };
    conn.transaction(swallow).expect("Diesel reports a commit");
    assert!(!is_frozen(&mut conn, "key"), "although the server rolled back");

    let mut runs = 0;
    let failed = Transaction::attempts(3).run(&mut conn, |conn| {
        runs += 1;
        swallow(conn)
    });
    assert!(matches!(failed, Err(Error::TransactionAborted(_))), "{failed:?}");
    assert_eq!(runs, 1);
    assert!(!is_open(&mut conn));
    assert!(!is_frozen(&mut conn, "key"));
}

#[test]
fn an_error_that_a_savepoint_caught_does_not_stand_in_the_way_of_the_commit() {
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
fn a_transaction_that_the_work_ended_itself_is_not_reported_as_a_commit() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let ended = Transaction::attempts(3).run(&mut conn, |conn| {
        freeze(conn, "key")?;
        Ok(conn.batch_execute("ROLLBACK")?)
    });
    assert!(matches!(ended, Err(Error::NotInTransaction)), "{ended:?}");
    assert!(!is_frozen(&mut conn, "key"));
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
fn a_transaction_within_another_is_refused_before_anything_is_sent() {
    let (_database, mut conn) = migrated();
    let (refused, sent) = statements_of(&mut conn, |conn| {
        conn.transaction(|conn| Transaction::attempts(3).run(conn, |_| Ok::<_, Error>(())))
    });
    assert!(matches!(refused, Err(Error::AlreadyInTransaction)), "{refused:?}");
    assert_eq!(sent, ["BEGIN", "ROLLBACK"]);
}

#[test]
fn what_a_deferred_constraint_refuses_at_the_commit_is_an_error_and_undone() {
    let (_database, mut conn) = migrated();
    conn.batch_execute("CREATE TABLE once (n int CONSTRAINT once_only UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        .unwrap();
    let failed = Transaction::attempts(3)
        .run(&mut conn, |conn| Ok::<_, Error>(conn.batch_execute("INSERT INTO once VALUES (1), (1)")?));
    let named =
        matches!(&failed, Err(Error::UniqueViolation { constraint, .. }) if constraint == "once_only");
    assert!(named, "{failed:?}");
    assert!(!is_open(&mut conn));
    Transaction::attempts(1).run(&mut conn, |conn| KeysDriver::new(conn).count_keys(&tenant())).unwrap();
}

/// A serialization failure at every run, until `until`.
fn fail_to_serialize<E>(
    conn: &mut PgConnection,
    attempts: u32,
    until: u32,
    wrap: fn(Error) -> E,
) -> (Result<(), E>, u32)
where
    E: From<Error> + std::error::Error + 'static,
{
    let mut runs = 0;
    let failing = "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'serialization_failure'; END $$";
    let done = Transaction::attempts(attempts).run(conn, |conn| {
        runs += 1;
        KeyRow { id: &format!("{runs} of {attempts}"), ..KeyRow::default() }.insert(conn);
        if runs < until {
            conn.batch_execute(failing).map_err(Error::from).map_err(wrap)?;
        }
        Ok(())
    });
    (done, runs)
}

#[test]
fn a_failed_attempt_is_undone_and_repeated_up_to_the_bound() {
    let (_database, mut conn) = migrated();
    let (done, runs) = fail_to_serialize(&mut conn, 3, 3, EngineError::from);
    done.unwrap();
    assert_eq!(runs, 3);
    assert_eq!(KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap(), 1, "only the last run is there");

    for (attempts, expected) in [(0, 1), (1, 1), (2, 2), (5, 5)] {
        let (failed, runs) = fail_to_serialize(&mut conn, attempts, u32::MAX, EngineError::from);
        let failed = failed.unwrap_err();
        assert!(matches!(failed, EngineError::Transparent(Error::SerializationFailure(_))), "{failed:?}");
        assert_eq!(runs, expected);
        assert!(!is_open(&mut conn));
    }
    assert_eq!(KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap(), 1);
}

#[test]
fn what_to_repeat_is_found_in_the_engines_own_error() {
    let (_database, mut conn) = migrated();
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, Error::from).1, 2);
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, EngineError::Transparent).1, 2);
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, Wrapped).1, 2);
}

#[test]
fn both_of_two_transactions_that_deadlock_succeed_in_the_end() {
    let (database, mut conn) = migrated();
    for id in ["a", "b"] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    let mut runs = 0;
    thread::scope(|scope| {
        let mut second = None;
        Transaction::attempts(20)
            .run(&mut conn, |conn| {
                runs += 1;
                freeze(conn, "a")?;
                if second.is_none() {
                    let mut conn = database.connect().unwrap();
                    second = Some(scope.spawn(move || {
                        let mut runs = 0;
                        let both = |conn: &mut PgConnection| {
                            runs += 1;
                            freeze(conn, "b").and_then(|()| freeze(conn, "a"))
                        };
                        Transaction::attempts(20).run(&mut conn, both).unwrap();
                        runs
                    }));
                    wait_until_one_waits(&mut database.connect().unwrap());
                }
                freeze(conn, "b")
            })
            .unwrap();
        let runs = runs + second.unwrap().join().unwrap();
        assert!(runs > 2, "neither ran twice: they did not deadlock");
    });
    assert!(is_frozen(&mut conn, "a") && is_frozen(&mut conn, "b"));
}

#[test]
fn a_connection_that_is_lost_during_the_commit_leaves_the_outcome_open() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut killer = database.connect().unwrap();
    let mut runs = 0;
    let lost = Transaction::attempts(3).run(&mut conn, |conn| {
        runs += 1;
        freeze(conn, "key")?;
        killer
            .batch_execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
                 WHERE state = 'idle in transaction' AND datname = current_database()",
            )
            .unwrap();
        Ok::<_, Error>(())
    });
    assert!(matches!(lost, Err(Error::CommitUnknown(_))), "{lost:?}");
    assert_eq!(lost.unwrap_err().advice(), Advice::CheckOutcome);
    assert_eq!(runs, 1);
    assert!(!is_frozen(&mut database.connect().unwrap(), "key"));
}

#[test]
fn a_connection_that_is_lost_before_the_commit_is_not_used_again() {
    let (_database, mut conn) = migrated();
    let mut runs = 0;
    let lost = Transaction::attempts(3).run(&mut conn, |conn| {
        runs += 1;
        Ok::<_, Error>(conn.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())")?)
    });
    assert!(matches!(lost, Err(Error::ConnectionLost(_))), "{lost:?}");
    assert_eq!(runs, 1);
}

#[test]
fn a_pool_drops_a_connection_to_a_server_that_takes_no_writes() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let pool = PoolConfig::new(database.url()).size(1).build().unwrap();
    pool.get().unwrap().batch_execute("SET default_transaction_read_only = on").unwrap();

    let freeze_key = |conn: &mut PgConnection| freeze(conn, "key").map_err(EngineError::from);
    let failed = Transaction::attempts(3).run(&mut pool.get().unwrap(), freeze_key);
    assert!(matches!(failed, Err(EngineError::Transparent(Error::ReadOnly(_)))), "{failed:?}");
    Transaction::attempts(1).run(&mut pool.get().unwrap(), freeze_key).expect("another connection");
}

#[test]
fn timeouts_last_as_long_as_the_transaction_and_travel_with_its_begin() {
    diesel::define_sql_function!(fn current_setting(name: diesel::sql_types::Text) -> Text);
    let (_database, mut conn) = migrated();
    let settings = |conn: &mut PgConnection| {
        ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
            .map(|name| diesel::select(current_setting(name)).get_result::<String>(conn).unwrap())
    };
    let before = settings(&mut conn);
    let timeouts = Timeouts {
        statement: Duration::from_nanos(1),
        lock: Duration::from_millis(1234),
        idle_in_transaction: Duration::MAX,
    };
    let transaction =
        Transaction::attempts(1).timeouts(Timeouts { statement: Duration::from_secs(7), ..timeouts });
    let (during, sent) = statements_of(&mut conn, |conn| {
        transaction.run(conn, |conn| Ok::<_, Error>(settings(conn))).unwrap()
    });
    assert_eq!(during, ["7s", "1234ms", "2147483647ms"]);
    assert_eq!(sent.len(), 2 + during.len(), "{sent:#?}");
    assert_eq!(settings(&mut conn), before);

    let too_short = Transaction::attempts(1)
        .timeouts(timeouts)
        .run(&mut conn, |conn| Ok::<_, Error>(conn.batch_execute("SELECT pg_sleep(60)")?));
    assert!(matches!(too_short, Err(Error::StatementTimeout(_))), "{too_short:?}");
}

#[test]
fn a_transaction_costs_one_round_trip_to_begin_and_one_to_commit() {
    let (_database, mut conn) = migrated();
    let ((), sent) =
        statements_of(&mut conn, |conn| Transaction::attempts(1).run(conn, |_| Ok::<_, Error>(())).unwrap());
    assert_eq!(sent, ["BEGIN", "SELECT; COMMIT"]);
}
