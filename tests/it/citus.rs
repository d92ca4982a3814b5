//! Both ways of `docs/sharding.md`, on a Citus cluster. Skipped without `TEST_CITUS_URL`: see `tests/citus.sh`.

mod errors;
mod followers;
mod methods;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, thread};

use api_keys_driver::{KeysDriver, Page, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Integer, Text};

use crate::support::{KeyRow, key, tenant};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    OneSchemaAShard,
    TablesByTenant,
}

const WAYS: [Way; 2] = [Way::OneSchemaAShard, Way::TablesByTenant];

/// A schema on the cluster, created by the SQL of the document.
struct Sharded {
    url: String,
    schema: String,
}

impl Sharded {
    /// Returns `None` if there is no cluster.
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

    /// The URL with the schema as its search path. If a parameter has two values, libpq uses the last one.
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

    /// Creates the views of a worker's shards again.
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
        // A body in `$$` contains such ends too.
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
    // A new version would also have a step whose table is on a shard.
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
