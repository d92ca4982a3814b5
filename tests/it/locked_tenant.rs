//! The lock of a tenant: a limit on the number of keys holds, and only `lock_tenant` waits.

use std::thread;

use api_keys_driver::{Error, KeyHash, KeySnapshot, KeysDriver, NewKey, Result, TenantId, Transaction};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::support::{at, migrated, other, tenant, wait_until_one_waits};

fn new_key(tenant_id: &TenantId, id: &str) -> NewKey {
    let now = at("2026-01-01T00:00:00Z");
    NewKey::new(tenant_id.clone(), id.into(), "Production", "sk-live", KeyHash::from(id), now)
}

fn insert_within_limit(conn: &mut PgConnection, key: &NewKey, most: u32) -> Result<Option<KeySnapshot>> {
    Transaction::attempts(3).run(conn, |conn| {
        let mut keys = KeysDriver::new(conn);
        let tenant_id = keys.lock_tenant(&key.tenant_id)?;
        if keys.count_keys_up_to(&tenant_id, most)? >= i64::from(most) {
            return Ok(None);
        }
        keys.insert_key(key).map(Some)
    })
}

/// Lets eight threads insert keys of two tenants at once, and counts the keys.
fn insert_from_eight_threads(
    database: &Database,
    insert: impl Fn(&mut PgConnection, &NewKey) -> Result<Option<KeySnapshot>> + Sync,
) -> [i64; 2] {
    thread::scope(|scope| {
        for n in 0..8 {
            let insert = &insert;
            scope.spawn(move || {
                let mut conn = database.connect().unwrap();
                for (round, tenant_id) in [tenant(), other()].iter().cycle().take(6).enumerate() {
                    insert(&mut conn, &new_key(tenant_id, &format!("{n} {round}"))).unwrap();
                }
            });
        }
    });
    let mut conn = database.connect().unwrap();
    [tenant(), other()].map(|tenant_id| KeysDriver::new(&mut conn).count_keys(&tenant_id).unwrap())
}

#[test]
fn eight_threads_that_insert_at_once_stay_within_the_limit() {
    let (database, _conn) = migrated();
    let counts = insert_from_eight_threads(&database, |conn, key| insert_within_limit(conn, key, 5));
    assert_eq!(counts, [5, 5]);
}

#[test]
fn without_the_lock_a_second_transaction_does_not_see_the_first() {
    let (database, mut conn) = migrated();
    let mut second = database.connect().unwrap();
    let insert_last = |conn: &mut PgConnection, id: &str| {
        let mut keys = KeysDriver::new(conn);
        assert_eq!(keys.count_keys_up_to(&tenant(), 1).unwrap(), 0);
        keys.insert_key(&new_key(&tenant(), id)).map(drop)
    };
    conn.transaction(|conn| {
        insert_last(conn, "a")?;
        second.transaction(|second| insert_last(second, "b"))
    })
    .unwrap();
    assert_eq!(KeysDriver::new(&mut conn).count_keys(&tenant()).unwrap(), 2, "both took the last place");
}

#[test]
fn locking_a_tenant_waits_for_its_holder_and_sees_its_changes() {
    let (database, mut conn) = migrated();
    let mut others = database.connect().unwrap();
    thread::scope(|scope| {
        let mut waiting = None;
        conn.transaction::<_, Error, _>(|conn| {
            let mut keys = KeysDriver::new(conn);
            let locked = keys.lock_tenant(&tenant())?;
            assert_eq!(*locked, tenant());
            keys.insert_key(&new_key(&locked, "first"))?;
            others.transaction::<_, Error, _>(|conn| {
                let mut keys = KeysDriver::new(conn);
                keys.lock_tenant(&other()).map(drop)?;
                keys.insert_key(&new_key(&tenant(), "not asked for the lock")).map(drop)
            })?;
            waiting = Some(scope.spawn(|| {
                let mut conn = database.connect().unwrap();
                conn.transaction::<_, Error, _>(|conn| {
                    let mut keys = KeysDriver::new(conn);
                    let locked = keys.lock_tenant(&tenant())?;
                    keys.count_keys(&locked)
                })
                .unwrap()
            }));
            wait_until_one_waits(&mut others);
            Ok(())
        })
        .unwrap();
        assert_eq!(waiting.unwrap().join().unwrap(), 2);
    });
}

#[test]
fn a_tenant_that_is_held_for_too_long_is_a_lock_timeout() {
    let (database, mut conn) = migrated();
    let mut second = database.connect().unwrap();
    second.batch_execute("SET lock_timeout = '50ms'").unwrap();
    conn.transaction::<_, Error, _>(|conn| {
        let _locked = KeysDriver::new(conn).lock_tenant(&tenant())?;
        let failed = second.transaction(|second| KeysDriver::new(second).lock_tenant(&tenant()).map(drop));
        assert!(matches!(failed, Err(Error::LockTimeout(_))), "{failed:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_tenant_is_locked_only_where_a_count_sees_committed_changes() {
    let (database, mut conn) = migrated();
    let lock = |conn: &mut PgConnection| KeysDriver::new(conn).lock_tenant(&tenant()).map(drop);
    let refused = conn.build_transaction().repeatable_read().run(lock);
    assert!(matches!(refused, Err(Error::RepeatableRead)), "{refused:?}");
    let outside = lock(&mut conn);
    assert!(matches!(outside, Err(Error::NotInTransaction)), "{outside:?}");

    let counts = insert_from_eight_threads(&database, |conn, key| {
        loop {
            let done = conn.build_transaction().serializable().run(|conn| {
                let mut keys = KeysDriver::new(conn);
                let tenant_id = keys.lock_tenant(&key.tenant_id)?;
                if keys.count_keys(&tenant_id)? >= 5 {
                    return Ok(None);
                }
                keys.insert_key(key).map(Some)
            });
            if !matches!(done, Err(Error::SerializationFailure(_))) {
                return done;
            }
        }
    });
    assert_eq!(counts, [5, 5]);
}
