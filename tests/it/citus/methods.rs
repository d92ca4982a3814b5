//! Every method on a cluster: which shards it uses, what it returns, and how long it takes.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::time::Instant;

use api_keys_driver::schema::api_keys;
use api_keys_driver::{Error, KeysDriver, NewKey, Page, Result, TenantId, Transaction};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;

use super::{Sharded, WAYS, Way, run, statements};
use crate::every_method::{Input, METHODS, Method, WITHOUT_TENANT, comparable};
use crate::hostile::{call_with_nothing_there, checksum, foreign_rows};
use crate::support::{KeyRow, OTHER, TENANT, at, key, migrated_apart, other, tenant};

const THROUGH_VIEWS: [&str; 6] = [
    "roll_up_usage",
    "recount_usage",
    "delete_calls_before",
    "fetch_key_events_after",
    "fetch_key_events_head",
    "compact_key_events",
];

impl Way {
    /// Whether the method works on Citus's tables. Followers and the maintenance use the views on a worker, and Citus
    /// refuses a statement that locks rows of several shards.
    fn has(self, method: &Method) -> bool {
        let is_across = method.name.ends_with(".two_tenants");
        !THROUGH_VIEWS.contains(&method.name) && (self == Self::OneSchemaAShard || !is_across)
    }
}

/// Makes statements fail that need more than one shard.
fn allow_one_shard_only(conn: &mut PgConnection, only: bool) {
    let level = if only { "error" } else { "off" };
    conn.batch_execute(&format!("SET citus.multi_task_query_log_level = '{level}'")).unwrap();
}

#[test]
fn each_method_uses_one_shard_and_returns_the_same_as_on_one_server() {
    let (_database, mut server) = migrated_apart();
    foreign_rows(&mut server);
    for way in WAYS {
        let Some(sharded) = Sharded::create(way) else { return };
        let mut conn = sharded.connect();
        foreign_rows(&mut conn);
        let with = Input { tenant_id: OTHER.into(), ..Input::default() };
        let mut refused = BTreeSet::new();
        // More often than a statement gets a custom plan.
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
            // The views read a worker's own tables, which Citus does not plan.
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

/// The time of a call in an open transaction that is rolled back, in microseconds. `None` if the call is refused.
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
        let document = include_str!("../../../docs/row_level_security.md");
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
