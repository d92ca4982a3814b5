//! Kills a migrating process at random moments, many times. The next call always ends in the same schema.

use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::{check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::migrations::{dump, lines};
use crate::migrator::{BUILDS, migrate_in_a_process};
use crate::support::{TENANT, existing_service, partitioned_service};

/// The number of kills for each of the two databases.
const KILLS: u32 = 26;

type Create = fn() -> Option<(Database, PgConnection)>;

/// The database with enough rows for index builds that take some time.
fn filled(create: Create) -> Option<(Database, PgConnection)> {
    let (database, mut conn) = create()?;
    conn.batch_execute(&format!(
        "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, status, created_at)
         SELECT n, '{TENANT}', 'Key', 'sk', n, 'active', '2026-01-01Z'::timestamptz + n * interval '1 minute'
         FROM generate_series(1, 10000) AS n;
         INSERT INTO proxy_calls (id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, created_at)
         SELECT n, '{TENANT}', n % 100, '/', 'm', 'h', '{{}}', '2025-12-01Z'::timestamptz + n * interval '2 minutes'
         FROM generate_series(1, 20000) AS n"
    ))
    .unwrap();
    Some((database, conn))
}

/// Numbers that look random and are the same in every run (the constants are Knuth's).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Kills until the number is reached, and returns the number of kills during an index build.
fn kill_again_and_again(create: Create, seed: u64) -> Option<u32> {
    let (_reference, mut conn) = filled(create)?;
    let started = Instant::now();
    migrate(&mut conn).unwrap();
    let longest = u64::try_from(started.elapsed().as_micros()).unwrap() * 2;
    let expected = dump(&mut conn);

    let (mut random, mut kills, mut in_builds) = (Random(seed), 0, 0);
    while kills < KILLS {
        let (database, mut conn) = filled(create)?;
        let mut finished = false;
        while !finished && kills < KILLS {
            let mut child = migrate_in_a_process(database.url());
            // Every third kill waits for an index build, and the others for a random time.
            let after = Duration::from_micros(random.below(longest));
            let started = Instant::now();
            let wants_a_build = kills % 3 == 0;
            let mut builds = 0;
            while !finished && builds == 0 && (wants_a_build || started.elapsed() < after) {
                finished = child.try_wait().unwrap().is_some();
                if wants_a_build {
                    builds = diesel::sql_query(BUILDS).execute(&mut conn).unwrap();
                } else {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            if !finished {
                child.kill().unwrap();
                kills += 1;
                in_builds += u32::from(diesel::sql_query(BUILDS).execute(&mut conn).unwrap() > 0);
            }
            child.wait().unwrap();
        }
        migrate(&mut conn).unwrap();
        assert_eq!(dump(&mut conn), expected, "seed {seed}, kill {kills}");
        let report = check(&mut conn).unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!(lines(&mut conn, "SELECT count(*)::text AS line FROM api_keys"), ["10000"]);
    }
    Some(in_builds)
}

#[test]
fn a_migration_that_is_killed_at_random_moments_ends_in_the_same_schema() {
    let databases: [Create; 2] = [existing_service, partitioned_service];
    let in_builds = thread::scope(|scope| {
        let runs =
            [11, 12].map(|seed| scope.spawn(move || kill_again_and_again(databases[seed % 2], seed as u64)));
        runs.map(|run| run.join().unwrap())
    });
    let [Some(plain), Some(partitioned)] = in_builds else { return };
    println!("{} kills, {} of them met a build", 2 * KILLS, plain + partitioned);
    assert!(plain + partitioned > 0, "no kill met a build");
}
