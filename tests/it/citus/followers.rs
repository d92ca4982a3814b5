//! Followers of events and the maintenance of usage on a cluster, also while shards move.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::schema::proxy_calls;
use api_keys_driver::{
    BigDecimal, DeniedKeys, Error, EventPosition, KeyHash, KeysDriver, NewCall, NewKey, TenantId, Transaction,
};
use chrono::TimeDelta;
use diesel::dsl::{count_star, sum};
use diesel::prelude::*;
use diesel::sql_types::Integer;

use super::{Sharded, Way, Worker, run};
use crate::support::{TENANT, at, decimal, key, tenant};

/// Inserts keys from four threads, each for its own tenants, in transactions that are open for a few milliseconds.
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
                        // Meanwhile transactions commit that began later.
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

/// Follows from a position to the last event, and keeps the ids of the keys.
fn follow(conn: &mut PgConnection, position: &mut Option<EventPosition>, seen: &mut Vec<String>) {
    loop {
        let events = KeysDriver::new(conn).fetch_key_events_after(position.as_ref(), 7).unwrap();
        let Some(last) = events.last() else { return };
        *position = Some(last.position);
        seen.extend(events.into_iter().map(|event| String::from(event.key_id)));
    }
}

/// Follows on each of the connections while keys are written.
fn follow_writers(sharded: &Sharded, followers: Vec<PgConnection>, round: u32) -> Vec<Vec<String>> {
    let (is_over, expected) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let followers: Vec<_> = followers
            .into_iter()
            .map(|mut conn| {
                let is_over = &is_over;
                scope.spawn(move || {
                    let (mut position, mut seen) = (None, Vec::new());
                    // With a deadline, so that a failed writer makes the test fail.
                    let deadline = Instant::now() + Duration::from_secs(60);
                    while !is_over.load(Ordering::Relaxed) && Instant::now() < deadline {
                        follow(&mut conn, &mut position, &mut seen);
                    }
                    // A follower waits for open transactions of other databases too, so this continues for some time.
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
fn followers_of_all_servers_together_skip_no_event_also_when_a_shard_moves() {
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
fn a_schema_that_moves_keeps_its_events_and_its_usage() {
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
        // Before the maintenance continues there, calls are written that belong to counted sums.
        write_calls(&sharded, round, &AtomicBool::new(true));
        sharded.make_views(&there);
        count_beside_writers(&sharded, &there, round * 14);

        let left = KeysDriver::new(&mut follower).fetch_key_events_after(followed_to.as_ref(), 1);
        assert!(left.is_err(), "the old server still answers: {left:?}");
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

/// Writes calls of two days, changes some and deletes some, until `is_over` is set, and at least 20 calls.
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
