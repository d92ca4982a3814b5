//! Errors of a cluster.

use std::error::Error as _;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use api_keys_driver::{Error, KeysDriver, NewKey, Result, Timeouts, Transaction};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;

use super::{Sharded, WAYS, Way, Worker};
use crate::support::{KeyRow, TENANT, at, key, tenant};

#[test]
fn existing_ids_and_hashes_deadlocks_and_timeouts_have_their_errors_on_a_shard() {
    for way in WAYS {
        let Some(sharded) = Sharded::create(way) else { return };
        let mut conn = sharded.connect();
        // Two keys to lock.
        for id in ["a", "b"] {
            KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
        }
        let insert = |conn: &mut PgConnection, id: &str, hash: &str| {
            let new = NewKey::new(tenant(), key(id), "", "", hash.into(), at("2026-01-01T00:00:00Z"));
            KeysDriver::new(conn).insert_key(&new).unwrap_err()
        };
        let taken = insert(&mut conn, "a", "new");
        assert!(matches!(&taken, Error::KeyExists(id) if *id == key("a")), "{way:?}: {taken:?}");
        let taken = insert(&mut conn, "new", "a");
        assert!(matches!(taken, Error::KeyHashExists(_)), "{way:?}: {taken:?}");

        let lock = |conn: &mut PgConnection, id: &str| {
            KeysDriver::new(conn)
                .fetch_key_for_update(&tenant(), &key(id))
                .map(|locked| drop(locked.unwrap()))
        };
        let mut second = sharded.connect();
        second.batch_execute("SET citus.propagate_set_commands = 'local'").unwrap();
        let short = Timeouts { lock: Duration::from_millis(50), ..Timeouts::default() };
        Transaction::attempts(1)
            .run(&mut conn, |conn| {
                lock(conn, "a")?;
                let waited =
                    Transaction::attempts(1).timeouts(short).run(&mut second, |second| lock(second, "a"));
                assert!(matches!(waited, Err(Error::LockTimeout(_))), "{way:?}: {waited:?}");
                Ok::<_, Error>(())
            })
            .unwrap();

        let barrier = Barrier::new(2);
        let answers = thread::scope(|scope| {
            let both = [(&mut conn, ["a", "b"]), (&mut second, ["b", "a"])].map(|(conn, [first, then])| {
                let barrier = &barrier;
                scope.spawn(move || {
                    Transaction::attempts(1).run(conn, |conn| {
                        lock(conn, first)?;
                        barrier.wait();
                        lock(conn, then)
                    })
                })
            });
            both.map(|thread| thread.join().unwrap())
        });
        let lost: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
        assert!(matches!(&lost[..], [Error::Deadlock(_)]), "{way:?}: {lost:?}");
    }
}

#[test]
fn a_deadlock_between_two_servers_is_a_deadlock() {
    let Some(sharded) = Sharded::create(Way::TablesByTenant) else { return };
    let mut conn = sharded.connect();
    let tenants: Vec<_> = (0..16).map(|n| format!("tenant {n}")).collect();
    for tenant_id in &tenants {
        KeyRow { id: tenant_id, tenant_id, ..KeyRow::default() }.insert(&mut conn);
    }
    let port_of = |conn: &mut PgConnection, tenant_id: &str| -> i32 {
        let port = "SELECT nodeport AS port, nodename AS host FROM citus_shards
                    WHERE shardid = get_shard_id_for_distribution_column('api_keys', $1)";
        diesel::sql_query(port).bind::<Text, _>(tenant_id).get_result::<Worker>(conn).unwrap().port
    };
    let first = &tenants[0];
    let here = port_of(&mut conn, first);
    let other = tenants.iter().find(|tenant_id| port_of(&mut conn, tenant_id) != here).unwrap();
    let lock = |conn: &mut PgConnection, id: &str| {
        KeysDriver::new(conn).fetch_key_for_update(&id.into(), &id.into()).map(|locked| drop(locked.unwrap()))
    };
    let barrier = Barrier::new(2);
    let answers = thread::scope(|scope| {
        let both = [[first, other], [other, first]].map(|[one, then]| {
            let (mut conn, barrier) = (sharded.connect(), &barrier);
            scope.spawn(move || {
                Transaction::attempts(1).run(&mut conn, |conn| {
                    lock(conn, one)?;
                    barrier.wait();
                    lock(conn, then)
                })
            })
        });
        both.map(|thread| thread.join().unwrap())
    });
    let lost: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(matches!(&lost[..], [Error::Deadlock(_)]), "{lost:?}");
    assert!(lost[0].source().unwrap().to_string().contains("distributed deadlock"), "{lost:?}");
}

#[test]
fn a_commit_whose_shard_is_lost_has_an_unknown_outcome() {
    for way in WAYS {
        let Some(sharded) = Sharded::create(way) else { return };
        let mut conn = sharded.connect();
        KeyRow::default().insert(&mut conn);
        let place = "SELECT nodename AS host, nodeport AS port FROM citus_shards
                     WHERE shardid = (SELECT min(shardid) FROM pg_dist_shard
                                      WHERE logicalrelid = 'api_keys'::regclass
                                        AND (shardminvalue IS NULL
                                             OR shardid = get_shard_id_for_distribution_column('api_keys', $1)))";
        let place: Worker = diesel::sql_query(place).bind::<Text, _>(TENANT).get_result(&mut conn).unwrap();
        let mut worker = sharded.connect_to(&place);
        let outcome = Transaction::attempts(3).run(&mut conn, |conn| {
            let mut keys = KeysDriver::new(conn);
            let locked = keys.fetch_key_for_update(&tenant(), &key("key"))?.unwrap();
            keys.update_key_frozen(locked, at("2026-01-01T00:00:00Z"))?;
            let of_this = "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_locks l USING (pid)
                           WHERE a.application_name LIKE 'citus_internal%' AND a.state = 'idle in transaction'
                             AND l.relation IN (SELECT oid FROM pg_class WHERE relnamespace = $1::regnamespace)";
            diesel::sql_query(of_this).bind::<Text, _>(&sharded.schema).execute(&mut worker)?;
            Ok::<_, Error>(())
        });
        let Err(Error::CommitUnknown(why)) = outcome else { panic!("{way:?}: {outcome:?}") };
        assert!(why.to_string().starts_with("could not commit transaction for shard "), "{why}");
    }
}
