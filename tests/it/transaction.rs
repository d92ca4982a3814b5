//! `Transaction`: commits, retries, savepoints, panics and the errors of the work.

mod savepoints;

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use api_keys_driver::schema::api_keys;
use api_keys_driver::{
    Advice, Error, KeysDriver, NewKey, PoolConfig, Result, Timeouts, Transaction, TransactionError,
};
use diesel::connection::{
    AnsiTransactionManager, Connection, InstrumentationEvent, SimpleConnection, TransactionManager,
};
use diesel::prelude::*;

use crate::support::{KeyRow, at, key, migrated, new_key, statements_of, tenant, wait_until_one_waits};

#[derive(Debug, thiserror::Error)]
enum EngineError {
    #[error("refused")]
    Refused,
    #[error(transparent)]
    Transparent(#[from] Error),
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

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
fn ok_means_committed_and_returns_the_value() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let answer = Transaction::attempts(1).run(&mut conn, |conn| freeze(conn, "key").map(|()| 7)).unwrap();
    assert_eq!(answer, 7);
    assert!(!is_open(&mut conn));
    assert!(is_frozen(&mut database.connect().unwrap(), "key"));
}

#[test]
fn debug_output_shows_the_settings() {
    let shown = format!("{:?}", Transaction::attempts(3).timeouts(Timeouts::default()).or_savepoint());
    for setting in ["attempts: 3", "lock: 5s", "or_savepoint: true"] {
        assert!(shown.contains(setting), "{shown}");
    }
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
fn an_error_that_the_work_ignores_is_not_reported_as_a_commit() {
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
fn a_transaction_within_another_is_refused_before_anything_is_sent() {
    let (_database, mut conn) = migrated();
    let (refused, sent) = statements_of(&mut conn, |conn| {
        conn.transaction(|conn| Transaction::attempts(3).run(conn, |_| Ok::<_, Error>(())))
    });
    assert!(matches!(refused, Err(Error::AlreadyInTransaction)), "{refused:?}");
    assert_eq!(sent, ["BEGIN", "ROLLBACK"]);
}

#[test]
fn a_deferred_constraint_that_fails_at_commit_is_an_error_and_rolls_back() {
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

/// Fails with a serialization failure in each run before `until`.
fn fail_to_serialize<E, Kind>(
    conn: &mut PgConnection,
    attempts: u32,
    until: u32,
    wrap: fn(Error) -> E,
) -> (Result<(), E>, u32)
where
    E: From<Error> + TransactionError<Kind>,
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
fn a_failed_attempt_is_rolled_back_and_repeated_up_to_the_limit() {
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
fn a_retryable_error_is_found_inside_the_engines_own_error() {
    let (_database, mut conn) = migrated();
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, Error::from).1, 2);
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, EngineError::Transparent).1, 2);
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, Wrapped).1, 2);
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, anyhow::Error::from).1, 2);
    let in_context = |error: Error| Err::<(), _>(error).context("first").context("second").unwrap_err();
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, in_context).1, 2);
    let in_an_enum = |error: Error| anyhow::Error::from(EngineError::from(error)).context("first");
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, in_an_enum).1, 2);
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, Boxed::from).1, 2);
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, |error| Boxed::from(Wrapped(error))).1, 2);
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, Box::<dyn std::error::Error>::from).1, 2);
    let as_text = |error: Error| anyhow::anyhow!("{error}");
    assert_eq!(fail_to_serialize(&mut conn, 2, u32::MAX, as_text).1, 1, "a text has no reason to repeat");
}

#[test]
fn an_engines_own_statement_is_repeated_whatever_its_error_became() {
    let (_database, mut conn) = migrated();
    let failing = "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'serialization_failure'; END $$";
    let mut runs = 0;
    let failed = Transaction::attempts(3).run(&mut conn, |conn| {
        runs += 1;
        conn.batch_execute(failing).context("the engine's own")?;
        anyhow::Ok(())
    });
    assert_eq!((runs, failed.is_err()), (3, true));
}

#[test]
fn a_panic_leaves_no_open_transaction() {
    let (database, mut conn) = migrated();
    for id in ["a", "b", "c"] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    let panics = |conn: &mut PgConnection, transaction: Transaction| {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            transaction.run(conn, |conn| -> Result<()> {
                freeze(conn, "a")?;
                AnsiTransactionManager::begin_transaction(conn)?;
                panic!("on purpose");
            })
        }));
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"on purpose"));
    };
    panics(&mut conn, Transaction::attempts(3));
    assert!(!is_open(&mut conn));
    for id in ["b", "c"] {
        Transaction::attempts(1).run(&mut conn, |conn| freeze(conn, id)).unwrap();
    }
    conn.transaction(|conn| {
        panics(conn, Transaction::attempts(3).or_savepoint());
        freeze(conn, "c")
    })
    .unwrap();
    drop(conn);
    let frozen = ["a", "b", "c"].map(|id| is_frozen(&mut database.connect().unwrap(), id));
    assert_eq!(frozen, [false, true, true]);
}

#[test]
fn each_retry_is_reported_with_its_reason_beforehand() {
    let (_database, mut conn) = migrated();
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    let transaction = Transaction::attempts(3)
        .on_retry(move |retry| log.lock().unwrap().push((retry.attempt, retry.reason.to_string())));
    let failing = "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'serialization_failure'; END $$";
    let mut seen = Vec::new();
    let failed: Result<()> = transaction.run(&mut conn, |conn| {
        seen.push(told.lock().unwrap().len());
        Ok(conn.batch_execute(failing)?)
    });
    let reason = failed.unwrap_err().to_string();
    assert_eq!(*told.lock().unwrap(), [(1, reason.clone()), (2, reason)]);
    assert_eq!(seen, [0, 1, 2]);
}

/// The transaction events of `work`, as `Debug` shows them.
fn events_of<T: Debug>(conn: &mut PgConnection, work: impl FnOnce(&mut PgConnection) -> T) -> Vec<String> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    conn.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        let text = format!("{event:?}");
        if text.contains("Transaction") {
            log.lock().unwrap().push(text.replace("Transaction { depth: ", " ").replace(" }", ""));
        }
    });
    let _ = work(conn);
    conn.set_instrumentation(|_: InstrumentationEvent<'_>| ());
    let seen = seen.lock().unwrap();
    seen.clone()
}

#[test]
fn instrumentation_sees_the_begin_and_the_end_of_each_transaction() {
    let (_database, mut conn) = migrated();
    let once = Transaction::attempts(1);
    let nested = once.clone().or_savepoint();
    let swallow = |conn: &mut PgConnection| {
        let _ = conn.batch_execute("SELECT 1/0");
        Ok::<_, Error>(())
    };
    let leave_open = |conn: &mut PgConnection| {
        AnsiTransactionManager::begin_transaction(conn)?;
        Ok::<_, Error>(())
    };
    let ok = |_: &mut PgConnection| Ok::<_, Error>(());
    let refuse = |_: &mut PgConnection| Err::<(), _>(EngineError::Refused);
    assert_eq!(events_of(&mut conn, |conn| once.run(conn, ok)), ["Begin 1", "Commit 1"]);
    assert_eq!(events_of(&mut conn, |conn| conn.transaction(ok)), ["Begin 1", "Commit 1"], "as Diesel's");
    assert_eq!(events_of(&mut conn, |conn| once.run(conn, refuse)), ["Begin 1", "Rollback 1"]);
    let open = ["Begin 1", "Begin 2", "Commit 2", "Commit 1"];
    assert_eq!(events_of(&mut conn, |conn| once.run(conn, leave_open)), open);
    let aborted = ["Begin 1", "Commit 1", "Rollback 1"];
    assert_eq!(events_of(&mut conn, |conn| once.run(conn, swallow)), aborted);
    let within = |conn: &mut PgConnection| once.run(conn, |conn| nested.run(conn, ok));
    assert_eq!(events_of(&mut conn, within), ["Begin 1", "Begin 2", "Commit 2", "Commit 1"]);
    let panics = |conn: &mut PgConnection| {
        catch_unwind(AssertUnwindSafe(|| once.run(conn, |_| -> Result<()> { panic!("on purpose") }))).is_err()
    };
    assert_eq!(events_of(&mut conn, panics), ["Begin 1", "Rollback 1"]);
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
fn a_serializable_transaction_runs_again_until_no_other_interferes() {
    const WORKERS: usize = 3;
    let (database, mut conn) = migrated();
    let all_have_counted = Barrier::new(WORKERS);
    let runs: usize = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (mut conn, all_have_counted) = (database.connect().unwrap(), &all_have_counted);
                scope.spawn(move || {
                    let mut runs = 0;
                    let count_and_insert = |conn: &mut PgConnection| {
                        runs += 1;
                        conn.batch_execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")?;
                        let count = KeysDriver::new(conn).count_keys(&tenant())?;
                        if runs == 1 {
                            all_have_counted.wait();
                        }
                        let key = NewKey { name: count.to_string(), ..new_key(&format!("{worker} {count}")) };
                        KeysDriver::new(conn).insert_key(&key)
                    };
                    Transaction::attempts(50).run(&mut conn, count_and_insert).unwrap();
                    runs
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert!(runs > WORKERS, "none ran twice");
    let counts: Vec<String> =
        api_keys::table.order(api_keys::name).select(api_keys::name).load(&mut conn).unwrap();
    assert_eq!(counts, ["0", "1", "2"], "each saw those before it");
}

#[test]
fn a_connection_that_is_lost_during_the_commit_has_an_unknown_outcome() {
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
fn a_pool_drops_a_connection_to_a_read_only_server() {
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
fn timeouts_last_as_long_as_the_transaction_and_are_sent_with_begin() {
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
