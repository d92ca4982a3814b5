//! Each kind of error, caused on a real server.

use std::fmt::Write;
use std::thread;

use api_keys_driver::schema::api_keys;
use api_keys_driver::{
    Advice, Error, KeyId, KeysDriver, NewKey, PoolConfig, Result, Transaction, TryLock, migrate,
};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::PrivateServer;

use crate::support::{KeyRow, at, key, migrated, tenant, wait_until_one_waits};

/// Checks the kind and the advice, and that the message does not repeat its source.
macro_rules! assert_error {
    ($result:expr, $kind:pat, $advice:expr) => {{
        let error = $result.expect_err("a failure");
        assert!(matches!(&error, $kind), "{error:?}");
        assert_eq!(error.advice(), $advice, "{error:?}");
        let source = std::error::Error::source(&error).expect("a source").to_string();
        assert!(!error.to_string().contains(&source), "{error}");
        error
    }};
}

fn lock(conn: &mut PgConnection, id: &str) -> Result<KeyId> {
    let locked = KeysDriver::new(conn).fetch_key_for_update(&tenant(), &key(id))?;
    Ok(locked.expect("the key").id.clone())
}

fn count(conn: &mut PgConnection) -> Result<i64> {
    KeysDriver::new(conn).count_keys(&tenant())
}

#[test]
fn two_transactions_that_wait_for_each_other_are_a_deadlock() {
    let (database, mut conn) = migrated();
    for id in ["a", "b"] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    let mut second = database.connect().unwrap();
    let answers = thread::scope(|scope| {
        let mut waiting = None;
        let first = conn.transaction(|conn| {
            lock(conn, "a")?;
            waiting = Some(scope.spawn(|| {
                second.transaction(|second| {
                    lock(second, "b")?;
                    lock(second, "a")
                })
            }));
            wait_until_one_waits(&mut database.connect().unwrap());
            lock(conn, "b")
        });
        [first, waiting.unwrap().join().unwrap()]
    });
    let (lost, kept): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_err);
    assert_eq!(kept.len(), 1, "one of them succeeds");
    for lost in lost {
        assert_error!(lost, Error::Deadlock(_), Advice::RetryTransaction);
    }
}

#[test]
fn a_row_changed_after_the_snapshot_is_a_serialization_failure() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    for waits in [true, false] {
        let failed = conn.build_transaction().repeatable_read().run(|conn| {
            count(conn)?;
            diesel::update(api_keys::table)
                .set(api_keys::total_requests.eq(api_keys::total_requests + 1))
                .execute(&mut database.connect().unwrap())?;
            if waits {
                lock(conn, "key").map(drop)
            } else {
                KeysDriver::new(conn).try_fetch_key_for_update(&tenant(), &key("key")).map(drop)
            }
        });
        assert_error!(failed, Error::SerializationFailure(_), Advice::RetryTransaction);
    }
}

#[test]
fn a_lock_that_is_held_for_too_long_is_a_lock_timeout() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let mut second = database.connect().unwrap();
    second.batch_execute("SET lock_timeout = '50ms'").unwrap();
    conn.transaction::<_, Error, _>(|conn| {
        lock(conn, "key")?;
        let failed = second.transaction(|second| lock(second, "key"));
        assert_error!(failed, Error::LockTimeout(_), Advice::RetryTransaction);
        Ok(())
    })
    .unwrap();
    assert_eq!(second.transaction(|second| lock(second, "key")).unwrap(), key("key"));
}

#[test]
fn a_statement_that_takes_too_long_is_a_statement_timeout() {
    let (_database, mut conn) = migrated();
    conn.batch_execute("SET statement_timeout = '50ms'").unwrap();
    let failed = conn.batch_execute("SELECT pg_sleep(60)").map_err(Error::from);
    assert_error!(failed, Error::StatementTimeout(_), Advice::Fail);
    count(&mut conn).expect("the connection still works");
}

#[test]
fn a_lock_in_a_read_only_session_is_read_only() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute("SET default_transaction_read_only = on").unwrap();
    let failed = conn.transaction(|conn| lock(conn, "key"));
    assert_error!(failed, Error::ReadOnly(_), Advice::Reconnect);
    assert_eq!(count(&mut conn).unwrap(), 1);
}

#[test]
fn a_server_that_became_a_standby_is_read_only_until_it_is_promoted() {
    let mut server = PrivateServer::start_new().unwrap();
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    KeyRow::default().insert(&mut database.connect().unwrap());
    let pool = PoolConfig::new(database.url()).size(1).build().unwrap();

    server.stop().unwrap();
    server.set_standby(true).unwrap();
    server.start().unwrap();
    assert_eq!(count(&mut pool.get().unwrap()).unwrap(), 1, "a replica can be read");
    let failed = pool.get().unwrap().transaction(|conn| lock(conn, "key"));
    assert_error!(failed, Error::ReadOnly(_), Advice::Reconnect);

    server.stop().unwrap();
    server.set_standby(false).unwrap();
    server.start().unwrap();
    pool.get().unwrap().transaction(|conn| lock(conn, "key")).expect("a lock on the primary");
}

#[test]
fn a_terminated_backend_is_a_lost_connection_at_every_further_call() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    let failed = conn.transaction(|conn| {
        lock(conn, "key")?;
        database
            .connect()
            .unwrap()
            .batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'api_keys'::regclass",
            )
            .unwrap();
        count(conn)
    });
    assert_error!(failed, Error::ConnectionLost(_), Advice::Reconnect);
    assert_error!(count(&mut conn), Error::ConnectionLost(_), Advice::Reconnect);
    let failed = conn.transaction(|conn| lock(conn, "key"));
    assert_error!(failed, Error::ConnectionLost(_), Advice::Reconnect);
    assert_eq!(count(&mut database.connect().unwrap()).unwrap(), 1);
}

#[test]
fn a_transaction_that_is_idle_for_too_long_loses_its_connection_and_its_lock() {
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute("SET idle_in_transaction_session_timeout = '50ms'").unwrap();
    let failed = conn.transaction(|conn| {
        lock(conn, "key")?;
        // Waits for the lock until the server ends the session that holds it.
        database.connect().unwrap().transaction(|second| lock(second, "key"))?;
        count(conn)
    });
    assert_error!(failed, Error::ConnectionLost(_), Advice::Reconnect);
}

#[test]
fn a_stopped_server_is_a_lost_connection_and_the_pool_finds_it_again() {
    let mut server = PrivateServer::start_new().unwrap();
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    let pool = PoolConfig::new(database.url()).size(1).build().unwrap();
    for end in [PrivateServer::stop, PrivateServer::crash] {
        let mut conn = pool.get().unwrap();
        end(&mut server).unwrap();
        assert_error!(count(&mut conn), Error::ConnectionLost(_), Advice::Reconnect);
        drop(conn);
        server.start().unwrap();
        assert_eq!(count(&mut pool.get().unwrap()).unwrap(), 0);
    }
}

#[test]
fn a_unique_violation_names_its_constraint_and_shows_no_hash() {
    let (_database, mut conn) = migrated();
    let hash = "5d41402abc4b2a76b9719d911017c592";
    KeyRow { id: "first", key_hash: Some(hash), ..KeyRow::default() }.insert(&mut conn);
    let again = api_keys::id.eq("second");
    let failed = diesel::insert_into(api_keys::table)
        .values((
            again,
            api_keys::tenant_id.eq(tenant()),
            api_keys::name.eq(""),
            api_keys::key_prefix.eq(""),
            api_keys::key_hash.eq(hash),
        ))
        .execute(&mut conn)
        .map_err(Error::from);
    let error = assert_error!(failed, Error::UniqueViolation { .. }, Advice::Fail);
    assert!(error.to_string().contains("uq_api_keys_key_hash"), "{error}");
    let source = std::error::Error::source(&error).unwrap();
    for text in
        [format!("{error:?}"), format!("{error:#?}"), error.to_string(), format!("{source} {source:?}")]
    {
        assert!(!text.contains(hash), "{text}");
    }
}

/// Raises an error like a Citus coordinator: with the message and the code of the shard's server, but without its
/// fields.
fn raise(conn: &mut PgConnection, message: &str, code: &str, detail: &str) -> Result<()> {
    let raise = format!(
        "DO $$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = '{code}', DETAIL = '{detail}'; END $$"
    );
    Ok(conn.batch_execute(&raise)?)
}

#[test]
fn a_violation_known_by_its_message_names_its_constraint_and_shows_no_value() {
    let (_database, mut conn) = migrated();
    let row = "Key (key_hash, tenant_id)=(secret, t) already exists.";
    for (message, code) in [
        ("duplicate key value violates unique constraint \"uq_api_keys_key_hash_102017\"", "23505"),
        ("new row for relation \"api_keys_102017\" violates check constraint \"short_102017\"", "23514"),
        ("insert or update on table \"a\" violates foreign key constraint \"b_102017\"", "23503"),
        ("null value in column \"name\" of relation \"a\" violates not-null constraint", "23502"),
        ("conflicting key value violates exclusion constraint \"e_102017\"", "23P01"),
    ] {
        let error = raise(&mut conn, message, code, row).unwrap_err();
        if let Error::UniqueViolation { constraint, .. } = &error {
            assert_eq!(constraint, "uq_api_keys_key_hash_102017");
        }
        let source = std::error::Error::source(&error).unwrap().downcast_ref();
        let Some(diesel::result::Error::DatabaseError(_, said)) = source else { panic!("{error:?}") };
        assert_eq!((said.message(), said.details()), (message, None));
        assert_eq!(said.constraint_name().is_some(), message.contains(" constraint \""), "{message}");
        assert_eq!(error.advice(), Advice::Fail);
    }
}

#[test]
fn every_field_of_the_servers_error_but_the_detail_is_passed_on() {
    let (_database, mut conn) = migrated();
    let raise = "DO $$ BEGIN RAISE EXCEPTION 'refused' USING DETAIL = 'the row', HINT = 'the hint',
                     SCHEMA = 's', TABLE = 't', COLUMN = 'c', CONSTRAINT = 'k'; END $$";
    let refused = Error::from(conn.batch_execute(raise).unwrap_err());
    let misspelt = Error::from(conn.batch_execute("SELECT nam FROM api_keys").unwrap_err());
    let said = |error: &Error| {
        let source = std::error::Error::source(error).unwrap().downcast_ref();
        let Some(diesel::result::Error::DatabaseError(_, said)) = source else { panic!("{error:?}") };
        let fields = [said.message(), said.details().unwrap_or("none"), said.hint().unwrap_or("none")];
        let names = [said.table_name(), said.column_name(), said.constraint_name()];
        (fields.join(", "), names.map(|name| name.unwrap_or("none")).join(", "), said.statement_position())
    };
    assert_eq!(said(&refused), ("refused, none, the hint".into(), "t, c, k".into(), None));
    let hint = "Perhaps you meant to reference the column \"api_keys.name\".";
    let message = format!("column \"nam\" does not exist, none, {hint}");
    assert_eq!(said(&misspelt), (message, "none, none, none".into(), Some(8)));
}

#[test]
fn a_taken_id_and_a_taken_hash_are_named_on_a_shard_too() {
    let insert = |conn: &mut PgConnection, id: &str, hash: &str| {
        let new = NewKey::new(tenant(), key(id), "", "", hash.into(), at("2026-01-01T00:00:00Z"));
        KeysDriver::new(conn).insert_key(&new).unwrap_err()
    };
    let refusals = |conn: &mut PgConnection| [insert(conn, "key", "new"), insert(conn, "new", "key")];
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute(
        "ALTER INDEX api_keys_pkey RENAME TO api_keys_pkey_102017;
         ALTER INDEX uq_api_keys_key_hash RENAME TO uq_api_keys_key_hash_102017",
    )
    .unwrap();
    let on_the_shard = refusals(&mut conn);
    conn.batch_execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'duplicate key value violates unique constraint \"%_102017\"',
                 CASE NEW.id WHEN 'key' THEN 'api_keys_pkey' ELSE 'uq_api_keys_key_hash' END
                 USING ERRCODE = '23505', DETAIL = 'Key (key_hash)=(key) already exists.';
         END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON api_keys FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .unwrap();
    for [id, hash] in [on_the_shard, refusals(&mut conn)] {
        assert!(matches!(id, Error::KeyExists(id) if id == key("key")));
        assert!(matches!(hash, Error::KeyHashExists(_)), "{hash:?}");
    }
}

#[test]
fn errors_of_a_coordinator_for_deadlocks_and_lost_commits_are_recognised() {
    let (_database, mut conn) = migrated();
    let deadlock = "canceling the transaction since it was involved in a distributed deadlock";
    let failed = raise(&mut conn, deadlock, "40P01", "");
    assert_error!(failed, Error::Deadlock(_), Advice::RetryTransaction);
    let commit = "could not commit transaction for shard 102017 on at least one active node";
    let failed = raise(&mut conn, commit, "XX000", "");
    assert_error!(failed, Error::CommitUnknown(_), Advice::CheckOutcome);
}

#[test]
fn a_missing_column_or_table_is_a_schema_mismatch() {
    let changes = [
        "ALTER TABLE api_keys RENAME TO keys",
        "ALTER TABLE api_keys DROP COLUMN frozen_at",
        "ALTER TABLE api_keys RENAME COLUMN tenant_id TO owner",
        "ALTER TABLE api_keys ALTER COLUMN id TYPE uuid USING gen_random_uuid()",
        "ALTER TABLE api_keys ALTER COLUMN created_at DROP DEFAULT, ALTER COLUMN created_at TYPE date",
        "ALTER TABLE api_keys ALTER COLUMN name DROP NOT NULL; UPDATE api_keys SET name = NULL",
    ];
    for change in changes {
        let (_database, mut conn) = migrated();
        KeyRow::default().insert(&mut conn);
        conn.batch_execute(change).unwrap();
        let mut keys = KeysDriver::new(&mut conn);
        let failed = keys.fetch_key_by_id(&tenant(), &key("key"));
        assert_error!(failed, Error::SchemaMismatch(_), Advice::Fail);
        // It is also not reported as a busy row.
        let tried = conn.transaction(|conn| {
            KeysDriver::new(conn).try_fetch_key_for_update(&tenant(), &key("key")).map(|tried| {
                assert!(!matches!(tried, TryLock::Busy), "{change}");
            })
        });
        assert_error!(tried, Error::SchemaMismatch(_), Advice::Fail);
    }
}

#[test]
fn a_column_of_another_type_refuses_the_change_as_a_schema_mismatch() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute(
        "DROP INDEX ix_api_keys_denied;
         ALTER TABLE api_keys ALTER is_frozen DROP DEFAULT, ALTER is_frozen TYPE integer USING 0",
    )
    .unwrap();
    let failed = conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let locked = keys.fetch_key_for_update(&tenant(), &key("key"))?.unwrap();
        keys.update_key_unfrozen(locked)
    });
    assert_error!(failed, Error::SchemaMismatch(_), Advice::Fail);
}

#[test]
fn a_statement_after_an_ignored_error_is_an_aborted_transaction() {
    let (_database, mut conn) = migrated();
    let failed = conn.transaction(|conn| {
        let _ = conn.batch_execute("SELECT 1/0");
        count(conn)
    });
    assert_error!(failed, Error::TransactionAborted(_), Advice::Fail);
}

#[test]
fn a_prepared_statement_that_is_lost_or_out_of_date_asks_for_another_connection() {
    let (database, mut conn) = migrated();
    let fetch =
        |conn: &mut PgConnection| KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key("key")).map(drop);
    for change in ["DEALLOCATE ALL", "ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(13)"] {
        fetch(&mut conn).unwrap();
        conn.batch_execute(change).unwrap();
        assert_error!(fetch(&mut conn), Error::PreparedStatementLost(_), Advice::Reconnect);
        conn = database.connect().unwrap();
    }
    let twice = "PREPARE p AS SELECT; PREPARE p AS SELECT";
    let failed = conn.batch_execute(twice).map_err(Error::from);
    assert_error!(failed, Error::PreparedStatementLost(_), Advice::Reconnect);
}

#[test]
fn an_unknown_error_is_not_retried() {
    let (_database, mut conn) = migrated();
    let unknown = [
        "SELECT 1/0",
        "DO $$ BEGIN RAISE EXCEPTION 'Deadlock detected'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'deadlock detected.'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'Verklemmung entdeckt' USING ERRCODE = 'deadlock_detected'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'my relation \"x\" does not exist'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'relation \"x\" does not exist yet'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'prepared statement \"x\" is slow'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'my prepared statement \"x\" already exists'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'column x is odd'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'a column x does not exist'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'column \"x\" is broad'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'x\" is of type y'; END $$",
    ];
    for statement in unknown {
        let failed = conn.batch_execute(statement).map_err(Error::from);
        assert_error!(failed, Error::Query(_), Advice::Fail);
    }
}

/// A statement that another session stops, by this function, while it runs.
fn stopped_by(function: &str) -> Result<()> {
    let (database, mut conn) = migrated();
    let mut killer = database.connect().unwrap();
    thread::scope(|scope| {
        let sleeping = scope.spawn(|| conn.batch_execute("SELECT pg_sleep(60)").map_err(Error::from));
        while !sleeping.is_finished() {
            killer
                .batch_execute(&format!(
                    "SELECT {function}(pid) FROM pg_stat_activity
                     WHERE wait_event = 'PgSleep' AND datname = current_database()"
                ))
                .unwrap();
        }
        sleeping.join().unwrap()
    })
}

#[test]
fn a_cancelled_statement_is_not_taken_for_a_timeout() {
    assert_error!(stopped_by("pg_cancel_backend"), Error::Query(_), Advice::Fail);
}

#[test]
fn a_session_that_is_terminated_during_a_statement_is_a_lost_connection() {
    assert_error!(stopped_by("pg_terminate_backend"), Error::ConnectionLost(_), Advice::Reconnect);
}

/// Everything that an error and its sources contain: their texts, and each field of the server's message.
fn all_fields(error: &(dyn std::error::Error + 'static)) -> String {
    let mut all = String::new();
    for error in std::iter::successors(Some(error), |error| error.source()) {
        write!(all, "{error} {error:?} {error:#?} ").unwrap();
        if let Some(diesel::result::Error::DatabaseError(_, said)) = error.downcast_ref() {
            write!(all, "{} {:?} {:?} {:?}", said.message(), said.details(), said.hint(), said.table_name())
                .unwrap();
            write!(all, "{:?} {:?}", said.column_name(), said.constraint_name()).unwrap();
        }
    }
    all
}

#[test]
fn no_error_holds_the_hash_of_the_row_that_was_refused() {
    let hash = "5d41402abc4b2a76b9719d911017c592";
    for refuse in [
        "ALTER TABLE api_keys ADD CONSTRAINT refused CHECK (name <> 'again') NOT VALID",
        "ALTER TABLE api_keys ADD CONSTRAINT refused CHECK (user_id IS NOT NULL) NOT VALID",
        "DELETE FROM api_keys; ALTER TABLE api_keys ALTER COLUMN user_id SET NOT NULL",
        "ALTER TABLE api_keys ADD CONSTRAINT refused UNIQUE (name)",
        "ALTER TABLE api_keys ADD CONSTRAINT refused UNIQUE (name) DEFERRABLE INITIALLY DEFERRED",
        "ALTER TABLE api_keys ADD CONSTRAINT refused EXCLUDE (name WITH =)",
        "ALTER TABLE api_keys ADD CONSTRAINT refused FOREIGN KEY (key_hash) REFERENCES hashes NOT VALID",
        "CREATE TRIGGER refused BEFORE INSERT ON api_keys FOR EACH ROW EXECUTE FUNCTION refuse()",
    ] {
        let (_database, mut conn) = migrated();
        KeyRow { id: "old", name: "again", ..KeyRow::default() }.insert(&mut conn);
        conn.batch_execute(&format!(
            "CREATE TABLE hashes (hash varchar PRIMARY KEY);
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN RAISE EXCEPTION 'refused' USING DETAIL = NEW::text; END $$;
             {refuse}"
        ))
        .unwrap();
        let now = at("2026-01-01T00:00:00Z");
        let new = NewKey::new(tenant(), key("new"), "again", "sk-live", hash.into(), now);
        let insert = |conn: &mut PgConnection| KeysDriver::new(conn).insert_key(&new).map(drop);
        let errors = [
            insert(&mut conn),
            conn.transaction(insert),
            Transaction::attempts(1).run(&mut conn, insert),
            Transaction::attempts(1).or_savepoint().run(&mut conn, insert),
        ];
        for error in errors.map(Result::unwrap_err) {
            let said = all_fields(&error);
            assert!(said.contains("refused") || said.contains("user_id"), "{said}");
            assert!(!said.contains(hash), "{refuse}: {said}");
        }
    }
}

#[test]
fn the_advice_on_a_failed_migration_is_that_of_its_cause() {
    let (_database, mut conn) = migrated();
    let stopped = |conn: &mut PgConnection, sql: &str| {
        let cause = conn.batch_execute(sql).unwrap_err();
        Error::Migration(Box::new(cause)).advice()
    };
    conn.batch_execute("SET statement_timeout = '10ms'").unwrap();
    assert_eq!(stopped(&mut conn, "SELECT pg_sleep(60)"), Advice::Fail);
    assert_eq!(stopped(&mut conn, "SELECT 1/0"), Advice::Fail);
    let deadlock = "DO $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END $$";
    assert_eq!(stopped(&mut conn, deadlock), Advice::RetryTransaction);
    for (words, advice) in [
        (
            "Failed to run 2026-01-01-000001_x with: canceling statement due to lock timeout",
            Advice::RetryTransaction,
        ),
        ("Failed to run 2026-01-01-000001_x with: deadlock detected", Advice::RetryTransaction),
        ("Failed to run 2026-01-01-000001_x with: division by zero", Advice::Fail),
        ("canceling statement due to lock timeout", Advice::Fail),
    ] {
        assert_eq!(Error::Migration(words.into()).advice(), advice, "{words}");
    }
}
