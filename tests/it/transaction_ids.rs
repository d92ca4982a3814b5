//! Transaction ids at their edges: transactions that are prepared and committed much later, and ids that need more than 32
//! bits. Followers and the maintenance of usage depend on their order.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use api_keys_driver::{DeniedKeys, KeysDriver, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use throwaway_postgres::{Database, PrivateServer};

use crate::support::usage::{assert_exact, call, changes, fill, roll_up, usage};
use crate::support::{KeyRow, at, eventually, key, server_with, tenant, wait_for_open_transactions};

#[test]
fn a_prepared_transaction_is_waited_for_and_missed_by_nobody_also_after_a_restart() {
    let mut server = server_with("ALTER SYSTEM SET max_prepared_transactions = 2");
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    let mut conn = database.connect().unwrap();
    fill(&mut conn);
    KeyRow { id: "late", ..KeyRow::default() }.insert(&mut conn);
    wait_for_open_transactions(&mut conn);
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();

    conn.batch_execute("BEGIN; UPDATE api_keys SET is_frozen = true WHERE id = 'late'").unwrap();
    call(&mut conn, "late", "2026-03-02T12:16:00Z", "1");
    conn.batch_execute("PREPARE TRANSACTION 'late'").unwrap();
    drop(conn);
    server.stop().unwrap();
    server.start().unwrap();

    let mut conn = database.connect().unwrap();
    conn.batch_execute("UPDATE api_keys SET status = 'revoked' WHERE id = 'key'").unwrap();
    assert_eq!(cache.catch_up(&mut conn).unwrap().events, 0, "an event passed one that may come before it");
    for _ in 0..5 {
        let step = KeysDriver::new(&mut conn).roll_up_usage(at("2026-03-03T00:00:00Z"), 5_000).unwrap();
        assert_eq!(step.unwrap().calls_counted, 0, "a call below may still come");
    }
    let before = usage(&mut conn, "2026-03-01T00:00:00Z");
    conn.batch_execute("COMMIT PREPARED 'late'").unwrap();

    eventually("both changes are followed", || {
        assert!(!cache.catch_up(&mut conn).unwrap().is_reseeded);
        cache.len() == 2
    });
    assert!(["late", "key"].iter().all(|id| cache.contains(&tenant(), &key(id))));
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z").0, before.0 + 1);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    assert_exact(&mut conn);
    assert_eq!(usage(&mut conn, "2026-03-01T00:00:00Z").0, before.0 + 1);
}

/// Raises the high half of the next transaction id, as four billion transactions do.
fn wrap(server: &mut PrivateServer, pg_resetwal: &Path, epoch: u32) {
    server.stop().unwrap();
    let folder = server.socket_folder();
    let owner = folder.join("data").metadata().unwrap();
    let reset = Command::new(pg_resetwal)
        .args(["-e", &epoch.to_string(), "-D"])
        .arg(folder.join("data"))
        .current_dir(folder)
        .uid(owner.uid())
        .gid(owner.gid())
        .output()
        .unwrap();
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    server.start().unwrap();
}

fn next_id(database: &Database) -> i64 {
    let sql = diesel::dsl::sql::<BigInt>("SELECT pg_current_xact_id()::text::bigint");
    sql.get_result(&mut database.connect().unwrap()).unwrap()
}

#[test]
fn ids_above_32_bits_are_followed_and_counted_in_order() {
    let pg_resetwal = throwaway_postgres::programs().unwrap().join("pg_resetwal");
    if !pg_resetwal.exists() {
        eprintln!("skipped: there is no pg_resetwal beside the server's programs");
        return;
    }
    let mut server = PrivateServer::start_new().unwrap();
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    let mut conn = database.connect().unwrap();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-02T12:20:00Z");
    call(&mut conn, "late", "2026-03-02T12:16:00Z", "1");
    // Announced below 32 bits, and counted above.
    KeysDriver::new(&mut conn).roll_up_usage(at("2026-03-02T18:00:00Z"), 100).unwrap().unwrap();
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    conn.batch_execute("UPDATE api_keys SET is_frozen = true").unwrap();
    drop(conn);
    let mut kinds = 2;
    for epoch in [1, 3] {
        wrap(&mut server, &pg_resetwal, epoch);
        assert_eq!(next_id(&database) >> 32, i64::from(epoch));
        let mut conn = database.connect().unwrap();
        cache.catch_up(&mut conn).unwrap();
        assert_eq!(cache.len(), usize::from(epoch == 1), "the event from before the wrap");
        conn.batch_execute("UPDATE api_keys SET is_frozen = NOT is_frozen").unwrap();
        kinds += 1;
        wait_for_open_transactions(&mut conn);
        assert_eq!(cache.catch_up(&mut conn).unwrap().events, 1);
        assert_eq!(cache.len(), usize::from(epoch == 3));
        let events = KeysDriver::new(&mut conn).fetch_key_events_after(None, 100).unwrap();
        assert_eq!(events.len(), kinds);
        assert!(events.is_sorted_by_key(|event| event.revision), "{events:?}");

        call(&mut conn, &format!("late {epoch}"), "2026-03-02T12:17:00Z", "1");
        assert_exact(&mut conn);
        roll_up(&mut conn, "2026-03-02T18:00:00Z");
        assert_eq!(changes(&mut conn), 0);
        assert_exact(&mut conn);
    }
}
