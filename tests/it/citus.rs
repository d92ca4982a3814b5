//! Both ways of `docs/sharding.md`, on a Citus cluster. Skipped without `TEST_CITUS_URL`: see `tests/citus.sh`.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use api_keys_driver::schema::{api_keys, proxy_calls};
use api_keys_driver::{
    BigDecimal, DeniedKeys, Error, EventPosition, KeyHash, KeysDriver, NewCall, NewKey, Page, Result,
    TenantId, Timeouts, Transaction, check, migrate,
};
use chrono::TimeDelta;
use diesel::connection::SimpleConnection;
use diesel::dsl::{count_star, sum};
use diesel::prelude::*;
use diesel::sql_types::{Integer, Text};

use crate::every_method::{Input, METHODS, Method, WITHOUT_TENANT, comparable};
use crate::hostile::{call_with_nothing_there, checksum, foreign_rows};
use crate::support::{KeyRow, OTHER, TENANT, at, decimal, key, migrated_apart, other, tenant};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    OneSchemaAShard,
    TablesByTenant,
}

impl Way {
    /// Whether Citus's tables have the method. Following and the maintenance go through the views on a worker; locks on
    /// rows of several shards in one statement are refused.
    fn has(self, method: &Method) -> bool {
        let is_across = method.name.ends_with(".two_tenants");
        !THROUGH_VIEWS.contains(&method.name) && (self == Self::OneSchemaAShard || !is_across)
    }
}

const THROUGH_VIEWS: [&str; 6] = [
    "roll_up_usage",
    "recount_usage",
    "delete_calls_before",
    "fetch_key_events_after",
    "fetch_key_events_head",
    "compact_key_events",
];

const WAYS: [Way; 2] = [Way::OneSchemaAShard, Way::TablesByTenant];

/// A schema on the cluster, created by the SQL of the document.
struct Sharded {
    url: String,
    schema: String,
}

impl Sharded {
    /// `None` where there is no cluster.
    fn create(way: Way) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Ok(url) = env::var("TEST_CITUS_URL") else {
            eprintln!("skipped: TEST_CITUS_URL is not set");
            return None;
        };
        let schema = format!("shard_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let sharded = Self { url, schema };
        let mut conn = sharded.connect();
        run(&mut conn, &sharded.documented("## One schema per shard\n", 0));
        migrate(&mut conn).unwrap();
        run(
            &mut conn,
            &match way {
                Way::OneSchemaAShard => sharded.documented("## One schema per shard\n", 1),
                Way::TablesByTenant => sharded.documented("## Tables distributed by tenant\n", 0),
            },
        );
        Some(sharded)
    }

    /// One block of SQL under a heading of the document, counted from 0.
    fn documented(&self, heading: &str, index: usize) -> Vec<String> {
        let (_, section) = include_str!("../../docs/sharding.md").split_once(heading).expect(heading);
        let block = section.split("```sql\n").nth(index + 1).unwrap().split("```").next().unwrap();
        statements(&block.replace("shard_a", &self.schema))
    }

    fn connect(&self) -> PgConnection {
        PgConnection::establish(&self.url_with("")).unwrap()
    }

    /// The URL with the schema as its path. Of two values for a parameter, libpq takes the last.
    fn url_with(&self, parameters: &str) -> String {
        let separator = if self.url.contains('?') { '&' } else { '?' };
        format!("{}{separator}options=-csearch_path%3D{}{parameters}", self.url, self.schema)
    }

    /// The servers that hold shards.
    fn workers(&self) -> Vec<Worker> {
        let workers =
            "SELECT nodename AS host, nodeport AS port FROM pg_dist_node WHERE shouldhaveshards ORDER BY 2";
        diesel::sql_query(workers).load(&mut self.connect()).unwrap()
    }

    fn connect_to(&self, Worker { host, port }: &Worker) -> PgConnection {
        PgConnection::establish(&self.url_with(&format!("&host={host}&port={port}"))).unwrap()
    }

    /// Makes the views of a worker's shards anew.
    fn make_views(&self, worker: &Worker) {
        run(&mut self.connect_to(worker), &self.documented("## Followers and maintenance\n", 0));
    }

    fn drop_views(&self, worker: &Worker) {
        run(&mut self.connect_to(worker), &self.documented("## Followers and maintenance\n", 1));
    }

    /// Connects to the views of a worker's shards, as followers and the maintenance do.
    fn connect_to_views(&self, Worker { host, port }: &Worker) -> PgConnection {
        let path = format!(
            "&options=-csearch_path%3D{0}_here,{0}%20-ccitus.enable_manual_changes_to_shards%3Don",
            self.schema
        );
        PgConnection::establish(&self.url_with(&format!("{path}&host={host}&port={port}"))).unwrap()
    }

    /// The server that holds the schema.
    fn holder(&self) -> Worker {
        let place = "SELECT nodename AS host, nodeport AS port FROM citus_shards WHERE table_name = 'api_keys'::regclass";
        diesel::sql_query(place).get_result(&mut self.connect()).unwrap()
    }
}

/// Splits SQL into its statements, each with a `;` at the end of its last line.
fn statements(sql: &str) -> Vec<String> {
    sql.split_inclusive(";\n").fold(vec![String::new()], |mut statements, part| {
        let last = statements.last_mut().unwrap();
        *last += part;
        // A body in `$$` has such ends of its own.
        if last.matches("$$").count() % 2 == 0 {
            statements.push(String::new());
        }
        statements
    })
}

fn run(conn: &mut PgConnection, statements: &[String]) {
    for statement in statements.iter().filter(|statement| !statement.trim().is_empty()) {
        conn.batch_execute(statement).unwrap_or_else(|error| panic!("{error}: {statement}"));
    }
}

#[derive(Clone, Debug, PartialEq, QueryableByName)]
struct Worker {
    #[diesel(sql_type = Text)]
    host: String,
    #[diesel(sql_type = Integer)]
    port: i32,
}

impl Drop for Sharded {
    fn drop(&mut self) {
        let drop_all = || {
            for worker in self.workers() {
                self.drop_views(&worker);
            }
            run(&mut self.connect(), &[format!("DROP SCHEMA {} CASCADE", self.schema)]);
        };
        // A second panic would hide the first one.
        if thread::panicking() {
            drop(catch_unwind(AssertUnwindSafe(drop_all)));
        } else {
            drop_all();
        }
    }
}

/// Makes a statement fail that needs more than one shard.
fn allow_one_shard_only(conn: &mut PgConnection, only: bool) {
    let level = if only { "error" } else { "off" };
    conn.batch_execute(&format!("SET citus.multi_task_query_log_level = '{level}'")).unwrap();
}

#[test]
fn each_method_is_answered_by_one_shard_as_by_one_server() {
    let (_database, mut server) = migrated_apart();
    foreign_rows(&mut server);
    for way in WAYS {
        let Some(sharded) = Sharded::create(way) else { return };
        let mut conn = sharded.connect();
        foreign_rows(&mut conn);
        let with = Input { tenant_id: OTHER.into(), ..Input::default() };
        let mut refused = BTreeSet::new();
        // More often than a statement is planned anew.
        for method in METHODS.iter().cycle().take(METHODS.len() * 7) {
            let knows_no_tenant = WITHOUT_TENANT.contains(&method.name);
            allow_one_shard_only(&mut conn, way == Way::OneSchemaAShard || !knows_no_tenant);
            let answers = [&mut conn, &mut server].map(|conn| undone(conn, method, &with));
            match answers {
                [Ok(sharded), Ok(single)] => assert_eq!(sharded, single, "{way:?}: {}", method.name),
                [Err(Error::Query(_) | Error::EventsNotRecorded), Ok(_)] => drop(refused.insert(method.name)),
                [sharded, single] => panic!("{way:?}: {}: {sharded:?}, {single:?}", method.name),
            }
        }
        let known: BTreeSet<_> =
            METHODS.iter().filter(|method| !way.has(method)).map(|method| method.name).collect();
        assert_eq!(refused, known, "{way:?}");
        if way == Way::OneSchemaAShard {
            sharded.make_views(&sharded.holder());
            let mut views = sharded.connect_to_views(&sharded.holder());
            // On a worker's own tables, as on a server of its own: not even planned by Citus.
            for method in METHODS.iter().filter(|method| THROUGH_VIEWS.contains(&method.name)) {
                let [through_views, single] =
                    [&mut views, &mut server].map(|conn| undone(conn, method, &with).unwrap());
                // The worker's sequence was never set, so each write left a change to merge.
                let through_views = through_views.replace("changes_merged: 4", "changes_merged: 0");
                assert_eq!(through_views, single, "{}", method.name);
            }
        }
    }
}

/// Calls a method in a transaction that is rolled back.
fn undone(conn: &mut PgConnection, method: &Method, with: &Input) -> Result<String> {
    let mut answer = None;
    conn.test_transaction::<_, diesel::result::Error, _>(|conn| {
        answer = Some((method.call)(conn, with));
        Ok(())
    });
    let answer = comparable(&answer.expect("the method was called")?);
    // A position and the time of an event are the server's own.
    let has_positions = answer.contains("EventPosition {");
    Ok(if has_positions { answer.matches("KeyEventSnapshot").count().to_string() } else { answer })
}

#[test]
fn no_input_reaches_a_foreign_row_on_a_shard() {
    for way in WAYS {
        let Some(sharded) = Sharded::create(way) else { return };
        let mut conn = sharded.connect();
        foreign_rows(&mut conn);
        let before = checksum(&mut conn);
        for text in ["key", "", "' OR '1'='1", "'; DROP TABLE api_keys; --", "\u{202e}yek"] {
            let ordinary = Input { key_id: text.into(), ..Input::default() };
            for with in [&ordinary, &Input { tenant_id: text.into(), ..ordinary.clone() }] {
                for method in METHODS.iter().filter(|method| way.has(method)) {
                    call_with_nothing_there(&mut conn, method, with);
                }
            }
        }
        assert_eq!(checksum(&mut conn), before, "{way:?}");
    }
}

/// Inserts keys from four threads, each of a tenant of its own, in transactions that are open for a moment.
fn write_keys(sharded: &Sharded, round: u32) -> BTreeSet<String> {
    const WRITERS: u32 = 4;
    const KEYS: u32 = 50;
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                let mut conn = sharded.connect();
                for n in 0..KEYS {
                    let id = format!("{round} {writer} {n}");
                    let written = Transaction::attempts(1).run(&mut conn, |conn| {
                        let at = at("2026-01-01T00:00:00Z");
                        let tenant_id = TenantId::from(format!("tenant {writer} {}", n % 4));
                        let hash = KeyHash::from(id.as_str());
                        KeysDriver::new(conn).insert_key(&NewKey::new(
                            tenant_id,
                            key(&id),
                            "",
                            "",
                            hash,
                            at,
                        ))?;
                        // Others commit meanwhile, whose transactions began later.
                        thread::sleep(Duration::from_millis(u64::from((n * 7 + writer * 3) % 5)));
                        Ok::<_, Error>(())
                    });
                    written.unwrap();
                }
            });
        }
    });
    (0..WRITERS).flat_map(|writer| (0..KEYS).map(move |n| format!("{round} {writer} {n}"))).collect()
}

/// Follows from a position until as many events came, and keeps the ids of their keys.
fn follow(conn: &mut PgConnection, position: &mut Option<EventPosition>, seen: &mut Vec<String>) {
    loop {
        let events = KeysDriver::new(conn).fetch_key_events_after(position.as_ref(), 7).unwrap();
        let Some(last) = events.last() else { return };
        *position = Some(last.position);
        seen.extend(events.into_iter().map(|event| String::from(event.key_id)));
    }
}

/// Follows each of the connections while keys are written.
fn follow_writers(sharded: &Sharded, followers: Vec<PgConnection>, round: u32) -> Vec<Vec<String>> {
    let (is_over, expected) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let followers: Vec<_> = followers
            .into_iter()
            .map(|mut conn| {
                let is_over = &is_over;
                scope.spawn(move || {
                    let (mut position, mut seen) = (None, Vec::new());
                    // Bounded, so that a writer that fails is seen.
                    let deadline = Instant::now() + Duration::from_secs(60);
                    while !is_over.load(Ordering::Relaxed) && Instant::now() < deadline {
                        follow(&mut conn, &mut position, &mut seen);
                    }
                    // What is open elsewhere on the server is waited for, for some seconds.
                    for _ in 0..100 {
                        follow(&mut conn, &mut position, &mut seen);
                        thread::sleep(Duration::from_millis(10));
                    }
                    seen
                })
            })
            .collect();
        expected.store(u32::try_from(write_keys(sharded, round).len()).unwrap(), Ordering::Relaxed);
        is_over.store(true, Ordering::Relaxed);
        followers.into_iter().map(|follower| follower.join().unwrap()).collect()
    })
}

fn each_once(seen: Vec<String>) -> BTreeSet<String> {
    let count = seen.len();
    let ids: BTreeSet<_> = seen.into_iter().collect();
    assert_eq!(ids.len(), count, "an event came twice");
    ids
}

#[test]
fn a_follower_of_a_schema_skips_no_event_on_its_server_and_is_refused_through_citus() {
    let Some(sharded) = Sharded::create(Way::OneSchemaAShard) else { return };
    let holder = sharded.holder();
    sharded.make_views(&holder);
    for seen in follow_writers(&sharded, vec![sharded.connect_to_views(&holder)], 0) {
        assert_eq!(each_once(seen).len(), 200);
    }
    let nodes = sharded.workers().into_iter().map(|worker| sharded.connect_to(&worker));
    for mut conn in nodes.chain([sharded.connect()]) {
        let refused = KeysDriver::new(&mut conn).fetch_key_events_after(None, 1);
        assert!(matches!(refused, Err(Error::EventsNotRecorded)), "{refused:?}");
        let refused = KeysDriver::new(&mut conn).fetch_key_events_head();
        assert!(matches!(refused, Err(Error::EventsNotRecorded)), "{refused:?}");
        let refused = DeniedKeys::seed(&mut conn).map(drop);
        assert!(matches!(refused, Err(Error::EventsNotRecorded)), "{refused:?}");
    }
}

#[test]
fn the_followers_of_each_server_together_skip_no_event_also_when_a_shard_moves() {
    let Some(sharded) = Sharded::create(Way::TablesByTenant) else { return };
    let workers = sharded.workers();
    let followers = || {
        workers.iter().map(|worker| {
            sharded.make_views(worker);
            sharded.connect_to_views(worker)
        })
    };
    let seen = follow_writers(&sharded, followers().collect(), 0);
    assert!(seen.iter().all(|seen| !seen.is_empty()), "the tenants are on one server");
    assert_eq!(each_once(seen.concat()).len(), 200);

    let mut positions: Vec<_> = followers()
        .map(|mut conn| {
            let mut position = None;
            follow(&mut conn, &mut position, &mut Vec::new());
            position
        })
        .collect();
    positions.push(positions[0]);
    let [from, to, ..] = &workers[..] else { panic!("two workers") };
    let id = "SELECT shardid::int AS port, nodename AS host FROM citus_shards WHERE nodeport = $1 AND shardid IN (
                  SELECT get_shard_id_for_distribution_column('api_key_events', tenant_id) FROM api_key_events)";
    let mut conn = sharded.connect();
    let shard: Worker = diesel::sql_query(id).bind::<Integer, _>(from.port).get_result(&mut conn).unwrap();
    let names = [
        ("102008", shard.port.to_string()),
        ("'worker-1', 5432", format!("'{}', {}", from.host, from.port)),
        ("'worker-2', 5432", format!("'{}', {}", to.host, to.port)),
    ];
    let documented = |index| {
        let sql = sharded.documented("### Moving a shard\n", index).into_iter();
        let with_names =
            |statement| names.iter().fold(statement, |sql: String, (old, new)| sql.replace(old, new));
        sql.map(with_names).collect::<Vec<_>>()
    };
    sharded.drop_views(from);
    run(&mut conn, &documented(0));
    run(&mut sharded.connect_to(to), &documented(1));

    let mut seen = Vec::new();
    for (mut follower, old) in followers().zip(positions) {
        let refused = KeysDriver::new(&mut follower).fetch_key_events_after(old.as_ref(), 1);
        assert!(matches!(refused, Err(Error::PositionElsewhere)), "{refused:?}");
        follow(&mut follower, &mut None, &mut seen);
    }
    assert_eq!(each_once(seen).len(), 200);
}

#[test]
fn a_schema_that_moves_takes_its_events_and_its_usage_along() {
    let Some(sharded) = Sharded::create(Way::OneSchemaAShard) else { return };
    let mut conn = sharded.connect();
    let mut expected = write_keys(&sharded, 0);
    let mut old_positions = Vec::new();
    sharded.make_views(&sharded.holder());
    for round in 1..4 {
        let here = sharded.holder();
        let mut follower = sharded.connect_to_views(&here);
        let mut followed_to = None;
        follow(&mut follower, &mut followed_to, &mut Vec::new());
        old_positions.push(followed_to);
        count_beside_writers(&sharded, &here, round * 14 - 7);

        let there = sharded.workers().into_iter().find(|worker| *worker != here).unwrap();
        let to = format!("'{}', {}", there.host, there.port);
        sharded.drop_views(&here);
        let sql = sharded.documented("### Moving a schema\n", 0);
        let sql: Vec<_> = sql.iter().map(|statement| statement.replace("'worker-2', 5432", &to)).collect();
        run(&mut conn, &sql);
        assert_eq!(sharded.holder(), there);
        // Before the maintenance goes on there, some write what belongs into sums that are counted.
        write_calls(&sharded, round, &AtomicBool::new(true));
        sharded.make_views(&there);
        count_beside_writers(&sharded, &there, round * 14);

        let left = KeysDriver::new(&mut follower).fetch_key_events_after(followed_to.as_ref(), 1);
        assert!(left.is_err(), "the server that the schema left goes on to answer: {left:?}");
        let mut follower = sharded.connect_to_views(&there);
        for old in &old_positions {
            let refused = KeysDriver::new(&mut follower).fetch_key_events_after(old.as_ref(), 1);
            assert!(matches!(refused, Err(Error::PositionElsewhere)), "{refused:?}");
        }
        let (mut position, mut seen) = (None, Vec::new());
        follow(&mut follower, &mut position, &mut seen);
        assert_eq!(each_once(seen), expected);
        let more = write_keys(&sharded, round.unsigned_abs());
        let (mut seen, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(30));
        while seen.len() < more.len() && Instant::now() < deadline {
            follow(&mut follower, &mut position, &mut seen);
        }
        assert_eq!(each_once(seen), more);
        expected.extend(more);
    }
}

const HOUR: TimeDelta = TimeDelta::hours(1);

/// Writes calls of two days, changes some and deletes some, until told that it is over, and once at least.
fn write_calls(sharded: &Sharded, round: i32, is_over: &AtomicBool) {
    let mut conn = sharded.connect();
    for n in 0.. {
        let hour = (n * 7 + round) % 48;
        let id = format!("{round} {n}");
        let created_at = at("2026-01-01T00:00:00Z") + HOUR * hour;
        let call = NewCall {
            cost_cents: Some(decimal("1.5")),
            ..NewCall::new(tenant(), &*id, key(&format!("key {}", n % 3)), created_at)
        };
        assert_eq!(KeysDriver::new(&mut conn).insert_calls(&[call]).unwrap(), 1);
        let of_it =
            proxy_calls::table.filter(proxy_calls::tenant_id.eq(TENANT)).filter(proxy_calls::id.eq(id));
        match n % 4 {
            1 => drop(
                diesel::update(of_it)
                    .set(proxy_calls::cost_cents.eq(decimal("2.25")))
                    .execute(&mut conn)
                    .unwrap(),
            ),
            2 => drop(diesel::delete(of_it).execute(&mut conn).unwrap()),
            _ => {}
        }
        if n > 20 && is_over.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Counts through the views while calls are written through Citus, and compares the sums with the calls.
fn count_beside_writers(sharded: &Sharded, holder: &Worker, hours: i32) {
    let is_over = AtomicBool::new(false);
    let mut views = sharded.connect_to_views(holder);
    write_calls(sharded, 1000 * hours + 9, &AtomicBool::new(true));
    let counted = thread::scope(|scope| {
        for writer in 0..3 {
            let is_over = &is_over;
            scope.spawn(move || write_calls(sharded, 1000 * hours + writer, is_over));
        }
        let (until, deadline) =
            (at("2026-01-01T00:00:00Z") + HOUR * hours, Instant::now() + Duration::from_secs(30));
        let counted = (|| {
            let mut counted = 0;
            while Instant::now() < deadline {
                let Some(step) = KeysDriver::new(&mut views).roll_up_usage(until, 30)? else { continue };
                counted += step.calls_counted;
                if step.counted_to >= until {
                    break;
                }
            }
            KeysDriver::new(&mut views).recount_usage(until - HOUR * 10)?;
            Ok::<_, Error>(counted)
        })();
        is_over.store(true, Ordering::Relaxed);
        counted.unwrap()
    });
    let begin = at("2025-01-01T00:00:00Z");
    for mut conn in [sharded.connect(), sharded.connect_to(holder), sharded.connect_to_views(holder)] {
        let usage = KeysDriver::new(&mut conn).fetch_tenant_usage(&tenant(), begin).unwrap();
        let sums: (i64, Option<BigDecimal>) = proxy_calls::table
            .filter(proxy_calls::tenant_id.eq(TENANT))
            .select((count_star(), sum(proxy_calls::cost_cents)))
            .get_result(&mut conn)
            .unwrap();
        assert_eq!((usage.request_count, Some(usage.spend_cents)), sums, "up to hour {hours}");
    }
    let drift = KeysDriver::new(&mut views).fetch_usage_drift(begin..at("2027-01-01T00:00:00Z"), 10).unwrap();
    assert!(drift.is_empty(), "up to hour {hours}: {drift:?}");
    assert!(counted > 0, "nothing was counted up to hour {hours}");
}

#[test]
fn documented_replacements_of_methods_reach_one_shard() {
    let Some(sharded) = Sharded::create(Way::TablesByTenant) else { return };
    let mut conn = sharded.connect();
    KeyRow::default().insert(&mut conn);
    for at in ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"].map(at) {
        conn.transaction(|conn| {
            let mut keys = KeysDriver::new(conn);
            let locked = keys.fetch_key_for_update(&tenant(), &key("key"))?.unwrap();
            keys.update_key_frozen(locked, at).map(drop)
        })
        .unwrap();
    }
    allow_one_shard_only(&mut conn, true);
    let sql = sharded
        .documented("### Compaction by tenant\n", 0)
        .concat()
        .replace("'a tenant'", &format!("'{TENANT}'"));
    assert_eq!(diesel::sql_query(sql.trim_end().trim_end_matches(';')).execute(&mut conn).unwrap(), 2);
    let left = KeysDriver::new(&mut conn).fetch_key_events(&tenant(), &key("key"), Page::default()).unwrap();
    assert_eq!(left.iter().map(|event| event.revision).collect::<Vec<_>>(), [3]);
}

#[test]
fn a_taken_id_or_hash_a_deadlock_and_a_timeout_have_their_errors_on_a_shard() {
    for way in WAYS {
        let Some(sharded) = Sharded::create(way) else { return };
        let mut conn = sharded.connect();
        // Of two tenants that are on different servers, where the way has such.
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
fn transactions_that_wait_for_each_other_on_two_servers_are_a_deadlock() {
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
fn a_commit_whose_shard_is_lost_is_unknown() {
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

#[test]
#[ignore = "measures: tests/citus.sh --ignored prints the table of docs/sharding.md"]
fn latency_of_each_method_through_each_node() {
    const CALLS: usize = 60;
    let (_database, mut server) = migrated_apart();
    let sharded = WAYS.map(Sharded::create);
    let [Some(by_schema), Some(by_tenant)] = &sharded else { return };
    let holder = by_schema.holder();
    for conn in [&mut server, &mut by_schema.connect(), &mut by_tenant.connect()] {
        foreign_rows(conn);
    }
    by_schema.make_views(&holder);
    let mut columns = [
        ("one PostgreSQL", server),
        ("a schema, its worker's views", by_schema.connect_to_views(&holder)),
        ("a schema, its worker", by_schema.connect_to(&holder)),
        ("a schema, the coordinator", by_schema.connect()),
        ("by tenant, the coordinator", by_tenant.connect()),
    ];
    println!("{}", version(&mut columns[3].1));
    println!("| microseconds | {} |", columns.each_ref().map(|(name, _)| *name).join(" | "));
    println!("|---|---|---|---|---|---|");
    let with = Input { tenant_id: OTHER.into(), ..Input::default() };
    for method in METHODS {
        let medians = columns.each_mut().map(|(_, conn)| {
            let mut times: Vec<_> = (0..CALLS).map_while(|_| timed(conn, method, &with)).collect();
            times.sort_unstable();
            times.get(CALLS / 2).map_or("refused".to_owned(), u128::to_string)
        });
        println!("| `{}` | {} |", method.name, medians.join(" | "));
    }
}

/// How long a call takes in an open transaction that is rolled back, in microseconds. `None`: it is refused.
fn timed(conn: &mut PgConnection, method: &Method, with: &Input) -> Option<u128> {
    let mut taken = None;
    conn.test_transaction::<_, diesel::result::Error, _>(|conn| {
        let started = Instant::now();
        taken = (method.call)(conn, with).ok().map(|_| started.elapsed().as_micros());
        Ok(())
    });
    taken
}

fn version(conn: &mut PgConnection) -> String {
    let version = diesel::dsl::sql::<Text>("split_part(citus_version(), ' on ', 1) || ' on ' || version()");
    diesel::select(version).get_result(conn).unwrap()
}

#[test]
fn row_level_security_hides_and_refuses_foreign_rows_on_shards() {
    for way in WAYS {
        let Some(sharded) = Sharded::create(way) else { return };
        let mut conn = sharded.connect();
        foreign_rows(&mut conn);
        let (worker, reader) =
            (format!("worker_of_{}", sharded.schema), format!("reader_of_{}", sharded.schema));
        let make = format!(
            "CREATE ROLE {worker} LOGIN;
CREATE ROLE {reader} LOGIN;
GRANT USAGE ON SCHEMA {schema} TO {worker};
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {schema} TO {worker};
",
            schema = sharded.schema,
        );
        let document = include_str!("../../docs/row_level_security.md");
        let blocks = document.split("```sql\n").skip(1).map(|block| block.split("```").next().unwrap());
        let sql = make + &blocks.collect::<String>();
        run(
            &mut conn,
            &statements(&sql.replace("api_keys_worker", &worker).replace("api_keys_reader", &reader)),
        );

        let mut behind = sharded.connect();
        run(
            &mut behind,
            &[format!("SET ROLE {worker}"), "SET citus.propagate_set_commands = 'local'".into()],
        );
        let all = |conn: &mut PgConnection| {
            Ok::<_, Error>(api_keys::table.select(api_keys::id).load::<String>(conn)?)
        };
        assert_eq!(all(&mut behind).unwrap(), [""; 0], "{way:?}");
        let wall = Transaction::attempts(1);
        assert_eq!(wall.run_for(&mut behind, &tenant(), all).unwrap(), [""; 0], "{way:?}");
        assert_eq!(wall.run_for(&mut behind, &other(), all).unwrap().len(), 4, "{way:?}");
        let new = |tenant_id: &TenantId| {
            NewKey::new(tenant_id.clone(), key("new"), "", "", "new".into(), at("2026-01-01T00:00:00Z"))
        };
        let insert = |conn: &mut PgConnection, new: &NewKey| {
            wall.run_for(conn, &tenant(), |conn| KeysDriver::new(conn).insert_key(new)).map(drop)
        };
        let refused = insert(&mut behind, &new(&other())).unwrap_err();
        let why = refused.source().unwrap().to_string();
        assert!(why.starts_with("new row violates row-level security policy for table"), "{way:?}: {why}");
        insert(&mut behind, &new(&tenant())).unwrap();
        assert_eq!(all(&mut behind).unwrap(), [""; 0], "{way:?}");
        drop(behind);
        run(
            &mut conn,
            &[format!("DROP OWNED BY {worker}, {reader}"), format!("DROP ROLE {worker}, {reader}")],
        );
    }
}

#[test]
fn a_distributed_schema_is_checked_and_migrated_again() {
    let Some(sharded) = Sharded::create(Way::OneSchemaAShard) else { return };
    let mut conn = sharded.connect();
    let obstacles = |conn: &mut PgConnection| {
        let mut names: Vec<_> = check(conn).unwrap().obstacles.into_iter().map(|found| found.name).collect();
        names.retain(|name| !name.contains("citus"));
        names
    };
    assert_eq!(obstacles(&mut conn), [""; 0]);
    // As a new version would: a step that finds its table on a shard.
    conn.batch_execute("SET citus.enable_unsafe_triggers = on").unwrap();
    conn.batch_execute("DROP TRIGGER proxy_calls_tell_usage ON proxy_calls").unwrap();
    assert_eq!(obstacles(&mut conn), ["trigger proxy_calls_tell_usage on proxy_calls"]);
    assert!(!migrate(&mut conn).unwrap().is_empty());
    assert_eq!(obstacles(&mut conn), [""; 0]);
    KeyRow::default().insert(&mut conn);
    assert_eq!(
        KeysDriver::new(&mut conn).fetch_key_events(&tenant(), &key("key"), Page::default()).unwrap().len(),
        1
    );
}
