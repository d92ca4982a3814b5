//! Transactions whose order of ids, of changes and of commits differ: what a cache makes of them, and which revisions a
//! key gets.

use api_keys_driver::{DeniedKeys, Error, KeyId, KeysDriver, TenantId};
use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use throwaway_postgres::{Database, PrivateServer};

use crate::support::events::{kinds, named};
use crate::support::{KeyRow, OTHER, TENANT, key, migrated_apart, tenant, wait_until_one_waits};

/// A migrated database on a server of its own, because each transaction of a server is in the order of events.
fn alone() -> (PrivateServer, Database, PgConnection) {
    let server = PrivateServer::start_new().unwrap();
    let database = server.create_database().unwrap();
    let mut conn = database.connect().unwrap();
    api_keys_driver::migrate(&mut conn).unwrap();
    (server, database, conn)
}

fn lines(conn: &mut PgConnection, sql: &str) -> Vec<String> {
    diesel::dsl::sql::<Text>(sql).load(conn).unwrap()
}

/// Connections with an open transaction each. The ids of the transactions are in this order.
fn open<const N: usize>(database: &Database) -> [PgConnection; N] {
    std::array::from_fn(|_| {
        let mut conn = database.connect().unwrap();
        conn.batch_execute("BEGIN; SELECT pg_current_xact_id()").unwrap();
        conn
    })
}

#[test]
fn a_key_that_is_allowed_again_is_kept_until_the_events_below_its_last_one_came() {
    let (_server, database, mut conn) = alone();
    KeyRow::default().insert(&mut conn);
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    conn.batch_execute("UPDATE api_keys SET name = 'x'").unwrap();
    let [mut first] = open(&database);
    conn.batch_execute("SELECT pg_current_xact_id()").unwrap();
    cache.catch_up(&mut conn).unwrap();

    let [mut unfreezes, mut last, mut freezes] = open(&database);
    freezes.batch_execute("UPDATE api_keys SET is_frozen = true; COMMIT").unwrap();
    unfreezes.batch_execute("UPDATE api_keys SET is_frozen = false; COMMIT").unwrap();
    first.batch_execute("COMMIT").unwrap();
    cache.catch_up(&mut conn).unwrap();
    last.batch_execute("COMMIT").unwrap();
    cache.catch_up(&mut conn).unwrap();
    assert!(!cache.contains(&tenant(), &key("key")), "{cache:?}");
    conn.batch_execute("SELECT pg_current_xact_id()").unwrap();
    cache.catch_up(&mut conn).unwrap();
    assert!(!format!("{cache:?}").contains("\"key\""), "forgotten");
}

#[test]
fn an_event_that_is_older_than_the_seeded_table_denies_nothing() {
    let (_server, database, mut conn) = alone();
    KeyRow::default().insert(&mut conn);
    KeyRow { id: "ice", ..KeyRow::default() }.insert(&mut conn);
    let [mut unfreezes, mut open, mut freezes] = open(&database);
    freezes.batch_execute("UPDATE api_keys SET is_frozen = true; COMMIT").unwrap();
    unfreezes.batch_execute("UPDATE api_keys SET is_frozen = false WHERE id = 'key'; COMMIT").unwrap();
    // The head is below the event of the freeze and above the one that removed it.
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    open.batch_execute("COMMIT").unwrap();
    cache.catch_up(&mut conn).unwrap();
    assert!(!cache.contains(&tenant(), &key("key")), "{cache:?}");
    assert!(cache.contains(&tenant(), &key("ice")));
}

#[test]
fn a_cache_is_not_seeded_in_a_transaction_that_may_be_rolled_back() {
    let (_database, mut conn) = migrated_apart();
    KeyRow { is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    for begin in ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"] {
        conn.batch_execute(begin).unwrap();
        assert!(DeniedKeys::seed(&mut conn).unwrap().contains(&tenant(), &key("key")));
        conn.batch_execute("SAVEPOINT s; UPDATE api_keys SET is_frozen = false").unwrap();
        let refused = DeniedKeys::seed(&mut conn);
        assert!(matches!(refused, Err(Error::AlreadyInTransaction)), "{refused:?}");
        conn.batch_execute("ROLLBACK").unwrap();
    }
}

#[test]
fn an_insert_that_waits_for_a_deletion_gets_a_higher_revision() {
    let (database, mut deletes) = migrated_apart();
    let (mut inserts, mut conn) = (database.connect().unwrap(), database.connect().unwrap());
    for rename in [false, true] {
        let begun = format!(
            "BEGIN; DELETE FROM api_keys WHERE id = 'key'; DELETE FROM api_keys WHERE id = 'other';
             INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash)
                 VALUES ('key', '{TENANT}', '', '', 'a'), ('other', '{TENANT}', '', '', 'b'); COMMIT;
             BEGIN; UPDATE api_keys SET is_frozen = true WHERE id = 'key'; UPDATE api_keys SET is_frozen = false;
             DELETE FROM api_keys WHERE id = 'key'"
        );
        deletes.batch_execute(&begun).unwrap();
        if rename {
            deletes.batch_execute("ROLLBACK; BEGIN; DELETE FROM api_keys WHERE id = 'key'").unwrap();
        }
        std::thread::scope(|scope| {
            let inserter = scope.spawn(|| {
                if rename {
                    inserts.batch_execute("UPDATE api_keys SET id = 'key' WHERE id = 'other'").unwrap();
                } else {
                    KeyRow::default().insert(&mut inserts);
                }
            });
            wait_until_one_waits(&mut conn);
            deletes.batch_execute("COMMIT").unwrap();
            inserter.join().unwrap();
        });
        let told = kinds(&mut conn, "key");
        let last: Vec<_> = told[told.len() - 2..].iter().map(|(_, kind)| kind.as_str()).collect();
        assert_eq!(last, ["deleted", "inserted"], "{told:?}");
        assert!(told[told.len() - 2].0 < told[told.len() - 1].0, "{told:?}");
    }
}

#[test]
fn an_insert_that_cannot_see_a_deletion_is_refused() {
    let (database, mut conn) = migrated_apart();
    let mut early = database.connect().unwrap();
    KeyRow::default().insert(&mut conn);
    early.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM api_keys").unwrap();
    conn.batch_execute("UPDATE api_keys SET name = 'x'; DELETE FROM api_keys").unwrap();
    let refused = diesel::insert_into(api_keys_driver::schema::api_keys::table)
        .values(&KeyRow::default())
        .execute(&mut early)
        .unwrap_err();
    assert!(refused.to_string().contains("could not serialize access"), "{refused}");
    early.batch_execute("ROLLBACK").unwrap();
    KeyRow::default().insert(&mut early);
    let lives = [(1, "inserted"), (2, "changed"), (3, "deleted"), (4, "inserted")];
    assert_eq!(kinds(&mut conn, "key"), named(&lives));
}

/// One step of a run: what a session or a follower does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A session sends a statement, and begins a transaction before if it has none.
    Write {
        session: usize,
        statement: u8,
        key: usize,
    },
    End {
        session: usize,
        commits: bool,
    },
    Seed,
    CatchUp {
        cache: usize,
    },
    Compact,
}

const SESSIONS: usize = 4;
const KEYS: usize = 2;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => (0..SESSIONS, any::<u8>(), 0..KEYS)
            .prop_map(|(session, statement, key)| Step::Write { session, statement, key }),
        5 => (0..SESSIONS, prop::bool::weighted(0.8)).prop_map(|(session, commits)| Step::End { session, commits }),
        1 => Just(Step::Seed),
        3 => (0..8_usize).prop_map(|cache| Step::CatchUp { cache }),
        1 => Just(Step::Compact),
    ];
    prop::collection::vec(step, 10..150)
}

/// A statement of another program on one of a few keys.
fn statement(what: u8, n: usize) -> String {
    let insert = "INSERT INTO api_keys AS k (id, tenant_id, name, key_prefix, key_hash, is_frozen, revision)";
    match what % 16 {
        0..=2 => format!("UPDATE api_keys SET is_frozen = true WHERE id = 'k{n}'"),
        3..=5 => format!("UPDATE api_keys SET is_frozen = false, status = 'active' WHERE id = 'k{n}'"),
        6 => format!("UPDATE api_keys SET status = 'revoked' WHERE id = 'k{n}'"),
        7 if n == 0 => format!("DELETE FROM api_keys WHERE id = 'k{n}'"),
        8 => format!("{insert} VALUES ('k{n}', '{TENANT}', '', '', 'k{n}', false, 9) ON CONFLICT DO NOTHING"),
        9 => format!(
            "{insert} VALUES ('k{n}', '{TENANT}', '', '', 'k{n}', true, 9)
             ON CONFLICT (id) DO UPDATE SET is_frozen = NOT k.is_frozen, revision = 0"
        ),
        10 if n == 0 => format!("UPDATE api_keys SET id = 'k{}' WHERE id = 'k{n}'", (n + 1) % KEYS),
        11 if n == 0 => format!(
            "UPDATE api_keys SET tenant_id = CASE tenant_id WHEN '{TENANT}' THEN '{OTHER}' ELSE '{TENANT}' END
             WHERE id = 'k{n}'"
        ),
        12 => format!("UPDATE api_keys SET total_requests = total_requests + 1 WHERE id = 'k{n}'"),
        13 => format!(
            "SAVEPOINT s; UPDATE api_keys SET is_frozen = true WHERE id = 'k{n}'; ROLLBACK TO s;
             UPDATE api_keys SET name = name || 'x' WHERE id = 'k{n}'"
        ),
        14 if n == 0 => format!(
            "WITH gone AS (DELETE FROM api_keys WHERE id = 'k{n}' RETURNING *)
             {insert} SELECT 'k{}', tenant_id, name, '', key_hash || 'w', true, 0 FROM gone ON CONFLICT DO NOTHING",
            (n + 1) % KEYS
        ),
        _ => format!("DO $$ BEGIN UPDATE api_keys SET is_frozen = NOT is_frozen WHERE id = 'k{n}'; RAISE 'x';
             EXCEPTION WHEN raise_exception THEN UPDATE api_keys SET status = 'on hold' WHERE id = 'k{n}'; END $$"),
    }
}

/// Sessions, the followers of their changes, and the steps that were refused.
struct Run<'a> {
    conn: &'a mut PgConnection,
    sessions: &'a mut [PgConnection],
    is_open: [bool; SESSIONS],
    caches: Vec<DeniedKeys>,
}

impl Run<'_> {
    fn take(&mut self, step: Step) {
        match step {
            Step::Write { session, statement: what, key } => {
                if !self.is_open[session] {
                    self.sessions[session].batch_execute("BEGIN; SELECT pg_current_xact_id()").unwrap();
                    self.is_open[session] = true;
                }
                if self.sessions[session].batch_execute(&statement(what, key)).is_err() {
                    // Another session holds the row, or a key has the id already.
                    self.take(Step::End { session, commits: false });
                }
            }
            Step::End { session, commits } if self.is_open[session] => {
                self.sessions[session].batch_execute(if commits { "COMMIT" } else { "ROLLBACK" }).unwrap();
                self.is_open[session] = false;
            }
            Step::End { .. } => {}
            Step::Seed => self.caches.push(DeniedKeys::seed(self.conn).unwrap()),
            Step::CatchUp { cache } => {
                if let Some(cache) = self.caches.get_mut(cache) {
                    cache.catch_up(self.conn).unwrap();
                }
            }
            Step::Compact => {
                let mut driver = KeysDriver::new(self.conn);
                let head = driver.fetch_key_events_head().unwrap();
                driver.compact_key_events(None, &head, DateTime::<Utc>::MAX_UTC, 100).unwrap();
            }
        }
    }

    /// Ends all transactions, and compares each cache with the table.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        for session in 0..SESSIONS {
            self.take(Step::End { session, commits: true });
        }
        self.take(Step::Seed);
        let rows: Vec<(String, String, bool)> = diesel::dsl::sql::<(Text, Text, diesel::sql_types::Bool)>(
            "SELECT tenant_id::text, id::text, is_frozen OR status <> 'active' FROM api_keys",
        )
        .load(self.conn)
        .unwrap();
        for cache in &mut self.caches {
            cache.catch_up(self.conn).unwrap();
            for (tenant_id, id, is_denied) in &rows {
                let (tenant_id, id) = (TenantId::from(&**tenant_id), KeyId::from(&**id));
                prop_assert_eq!(cache.contains(&tenant_id, &id), *is_denied, "{} {:?}", id, cache);
            }
        }
        let differing = lines(
            self.conn,
            "SELECT concat_ws(' ', k.tenant_id, k.id, k.revision, e.kind, e.revision)
             FROM api_keys AS k LEFT JOIN LATERAL (
                 SELECT * FROM api_key_events
                 WHERE tenant_id = k.tenant_id AND key_id = k.id ORDER BY revision DESC, id LIMIT 1
             ) AS e ON true
             WHERE (e.revision, e.is_frozen, e.status, e.kind = 'deleted')
                 IS DISTINCT FROM (k.revision, k.is_frozen, k.status::text, false)",
        );
        prop_assert_eq!(differing, [""; 0]);
        Ok(())
    }
}

#[test]
fn any_interleaving_of_transactions_and_followers_leaves_each_cache_right() {
    let (_server, database, mut conn) = alone();
    let mut sessions: Vec<_> = (0..SESSIONS).map(|_| database.connect().unwrap()).collect();
    for session in &mut sessions {
        session.batch_execute("SET lock_timeout = '5ms'; SET deadlock_timeout = '1ms'").unwrap();
    }
    let shared = std::cell::RefCell::new((&mut conn, &mut sessions));
    TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() })
        .run(&steps(), |steps| {
            let mut shared = shared.borrow_mut();
            let (conn, sessions) = &mut *shared;
            for session in sessions.iter_mut() {
                session.batch_execute("ROLLBACK").unwrap();
            }
            conn.batch_execute(
                "TRUNCATE api_keys, api_key_events; UPDATE api_key_events_compacted SET revision = 0",
            )
            .unwrap();
            for n in 0..KEYS {
                KeyRow { id: &format!("k{n}"), ..KeyRow::default() }.insert(conn);
            }
            let mut run = Run { conn, sessions, is_open: [false; SESSIONS], caches: vec![] };
            for step in steps {
                run.take(step);
            }
            run.finish()
        })
        .unwrap();
}
