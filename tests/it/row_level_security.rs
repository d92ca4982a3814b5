//! With the policies of `docs/row_level_security.md`, no statement reaches a row of another tenant.

use std::time::{Duration, Instant};

use api_keys_driver::schema::api_keys;
use api_keys_driver::{Error, KeyUse, KeysDriver, NewKey, Page, Result, TenantId, Transaction};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use throwaway_postgres::Database;

use crate::every_method::{Input, METHODS, WITHOUT_TENANT, comparable};
use crate::hostile::{checksum, foreign_rows};
use crate::support::prepared::{Prepared, prepared_by};
use crate::support::{KeyRow, OTHER, TENANT, at, key, migrated, migrated_apart, new_key, other, tenant};

/// Runs the SQL of the document, with a role that only this database's tests use.
fn build_wall(database: &Database, conn: &mut PgConnection) -> PgConnection {
    let name: String =
        diesel::select(diesel::dsl::sql::<Text>("current_database()::text")).get_result(conn).unwrap();
    let [worker, reader] = ["worker", "reader"].map(|role| format!("{role}_of_{name}"));
    conn.batch_execute(&format!(
        "CREATE ROLE {worker} LOGIN; CREATE ROLE {reader} LOGIN;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {worker};
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}"
    ))
    .unwrap();
    let document = include_str!("../../docs/row_level_security.md");
    for block in document.split("```sql\n").skip(1) {
        let sql = block.split("```").next().unwrap();
        let sql = sql.replace("api_keys_worker", &worker).replace("api_keys_reader", &reader);
        conn.batch_execute(&sql).unwrap();
    }
    as_role(database, &worker)
}

fn as_role(database: &Database, role: &str) -> PgConnection {
    let mut conn = database.connect().unwrap();
    conn.batch_execute(&format!("SET ROLE {role}")).unwrap();
    conn
}

/// The statements of each method that is confined to a tenant, called for the tenant that has rows.
fn every_statement(conn: &mut PgConnection) -> Vec<(&'static str, Prepared)> {
    let with = Input { tenant_id: OTHER.into(), ..Input::default() };
    let confined = METHODS.iter().filter(|method| !WITHOUT_TENANT.contains(&method.name));
    let mut all = Vec::new();
    for method in confined.filter(|method| !method.name.starts_with("insert_")) {
        let sent = conn.test_transaction::<_, Error, _>(|conn| Ok(prepared_by(conn, method, &with)));
        all.extend(sent.into_iter().map(|sent| (method.name, sent)));
    }
    all
}

/// The statement without its tenant: each condition on `tenant_id` is replaced by one that is always true.
fn without_tenant(sql: &str) -> String {
    let mut parts = sql.split("\"tenant_id\" = ");
    let mut rewritten = parts.next().unwrap().to_owned();
    for part in parts {
        if rewritten.ends_with("\"api_keys\".")
            || rewritten.ends_with("\"proxy_calls\".")
            || rewritten.ends_with("\"api_key_events\".")
        {
            rewritten.truncate(rewritten.trim_end_matches('.').rfind(['(', ' ']).unwrap() + 1);
        }
        let end = part.find(|c: char| !(c.is_alphanumeric() || "$\"._".contains(c))).unwrap_or(part.len());
        rewritten = [&rewritten, &part[..end], " IS NOT NULL", &part[end..]].concat();
    }
    assert_ne!(rewritten, sql);
    rewritten
}

#[derive(Debug, PartialEq, QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    row: String,
}

/// The answer of the statement without its tenant: its rows, or the number of changed rows. `commit` says whether the
/// change is committed.
fn answer(conn: &mut PgConnection, sent: &Prepared, commit: bool) -> String {
    let mut answer = String::new();
    let ended = Transaction::attempts(1).run_for(conn, &tenant(), |conn| {
        conn.batch_execute(&format!("PREPARE sent ({}) AS {}", sent.types, without_tenant(&sent.sql)))?;
        let execute = format!("EXECUTE sent ({})", sent.arguments);
        answer = if sent.sql.contains(" SET ") || sent.sql.contains("DELETE FROM") {
            diesel::sql_query(execute).execute(conn)?.to_string()
        } else {
            conn.batch_execute(&format!("CREATE TEMP TABLE answer ON COMMIT DROP AS {execute}"))?;
            let rows: Vec<Row> = diesel::sql_query("SELECT answer::text AS row FROM answer").load(conn)?;
            format!("{rows:?}")
        };
        conn.batch_execute("DEALLOCATE sent")?;
        if commit { Ok(()) } else { Err(Error::from(diesel::result::Error::RollbackTransaction)) }
    });
    match ended {
        Ok(()) | Err(Error::Query(diesel::result::Error::RollbackTransaction)) => {}
        Err(error) => panic!("{error:?}: {}", without_tenant(&sent.sql)),
    }
    answer
}

#[test]
fn no_statement_without_its_tenant_reaches_a_foreign_row() {
    let (database, mut owner) = migrated_apart();
    foreign_rows(&mut owner);
    let statements = every_statement(&mut owner);
    assert!(statements.len() > 30, "{}", statements.len());
    let mut worker = build_wall(&database, &mut owner);
    let before = checksum(&mut owner);
    let (_empty, mut empty) = migrated();
    for (method, sent) in &statements {
        let nothing = answer(&mut empty, sent, false);
        assert_eq!(answer(&mut worker, sent, true), nothing, "{method}: {}", sent.sql);
        assert_eq!(checksum(&mut owner), before, "{method}");
    }
    // The same statements reach the rows without row-level security.
    let show_no_row = ["lock_tenant", "try_record_key_uses", "try_record_key_uses.two_tenants"];
    for (method, sent) in statements.iter().filter(|(method, _)| !show_no_row.contains(method)) {
        assert_ne!(
            answer(&mut owner, sent, false),
            answer(&mut empty, sent, false),
            "{method}: {} {}",
            sent.sql,
            sent.arguments
        );
    }
}

#[test]
fn each_method_returns_the_same_for_its_own_tenant() {
    let (database, mut owner) = migrated_apart();
    foreign_rows(&mut owner);
    let mut worker = build_wall(&database, &mut owner);
    let with = Input { tenant_id: OTHER.into(), ..Input::default() };
    for method in METHODS.iter().filter(|method| !WITHOUT_TENANT.contains(&method.name)) {
        let [behind, outside] = [&mut worker, &mut owner].map(|conn| {
            let mut answer = String::new();
            let undone = Transaction::attempts(1).run_for(conn, &other(), |conn| {
                answer = (method.call)(conn, &with)?;
                Err::<(), _>(Error::from(diesel::result::Error::RollbackTransaction))
            });
            undone.unwrap_err();
            answer
        });
        assert_eq!(comparable(&behind), comparable(&outside), "{}", method.name);
    }
}

#[test]
fn a_foreign_row_can_be_neither_inserted_nor_taken_over() {
    let (database, mut owner) = migrated_apart();
    KeyRow::default().insert(&mut owner);
    let mut worker = build_wall(&database, &mut owner);
    let new = |tenant_id: &TenantId| {
        NewKey::new(
            tenant_id.clone(),
            key("new"),
            "Production",
            "sk-live-abcd",
            "hash".into(),
            at("2026-01-01T00:00:00Z"),
        )
    };
    let insert = |conn: &mut PgConnection, tenant_id: &TenantId| {
        Transaction::attempts(1)
            .run_for(conn, &tenant(), |conn| KeysDriver::new(conn).insert_key(&new(tenant_id)))
    };
    let refused = insert(&mut worker, &other()).unwrap_err();
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert_eq!(why, "new row violates row-level security policy for table \"api_keys\"");
    insert(&mut worker, &tenant()).unwrap();

    let give = |conn: &mut PgConnection| {
        Transaction::attempts(1).run_for(conn, &tenant(), |conn| {
            Ok::<_, Error>(diesel::update(api_keys::table).set(api_keys::tenant_id.eq(OTHER)).execute(conn)?)
        })
    };
    assert!(give(&mut worker).is_err());
    let take = |conn: &mut PgConnection| {
        Transaction::attempts(1).run_for(conn, &other(), |conn| {
            Ok::<_, Error>(diesel::update(api_keys::table).set(api_keys::tenant_id.eq(OTHER)).execute(conn)?)
        })
    };
    assert_eq!(take(&mut worker).unwrap(), 0);
}

#[test]
fn the_server_does_not_say_which_key_of_a_batch_it_refused() {
    let (database, mut owner) = migrated();
    KeyRow { key_hash: Some("taken"), ..KeyRow::default() }.insert(&mut owner);
    let mut worker = build_wall(&database, &mut owner);
    let mut insert = |keys: &[NewKey]| {
        let inserted = Transaction::attempts(1)
            .run_for(&mut worker, &tenant(), |conn| KeysDriver::new(conn).insert_keys(keys).map(drop));
        inserted.unwrap_err()
    };
    let (taken_id, taken_hash) = (new_key("key"), NewKey { key_hash: "taken".into(), ..new_key("new") });
    for (taken, index) in [(&taken_id, "api_keys_pkey"), (&taken_hash, "uq_api_keys_key_hash")] {
        let refused = insert(&[new_key("first"), taken.clone()]);
        let named = matches!(&refused, Error::UniqueViolation { constraint, .. } if constraint == index);
        assert!(named, "{refused:?}");
    }
    assert!(matches!(insert(&[taken_id]), Error::KeyExists(_)));
    assert!(matches!(insert(&[taken_hash]), Error::KeyHashExists(_)));
}

#[test]
fn a_statement_outside_its_transaction_sees_no_row() {
    let (database, mut owner) = migrated_apart();
    for (id, tenant_id) in [("key", TENANT), ("key of nobody", "")] {
        KeyRow { id, tenant_id, ..KeyRow::default() }.insert(&mut owner);
    }
    let mut worker = build_wall(&database, &mut owner);
    let count = |conn: &mut PgConnection| api_keys::table.count().get_result::<i64>(conn).unwrap();
    assert_eq!(count(&mut worker), 0);
    let seen = Transaction::attempts(1).run_for(&mut worker, &tenant(), |conn| Ok::<_, Error>(count(conn)));
    assert_eq!(seen.unwrap(), 1);
    // From now on the setting is an empty text, and a tenant has this id.
    assert_eq!(count(&mut worker), 0);
    let seen = Transaction::attempts(1).run(&mut worker, |conn| Ok::<_, Error>(count(conn)));
    assert_eq!(seen.unwrap(), 0);
    assert_eq!(count(&mut owner), 2);
}

#[test]
fn a_role_that_may_read_all_tenants_finds_a_key_by_its_hash_and_changes_none() {
    let (database, mut owner) = migrated_apart();
    KeyRow::default().insert(&mut owner);
    let mut worker = build_wall(&database, &mut owner);
    let reader: String = diesel::select(diesel::dsl::sql::<Text>("'reader_of_' || current_database()"))
        .get_result(&mut owner)
        .unwrap();
    let find = |conn: &mut PgConnection| KeysDriver::new(conn).fetch_key_by_hash(&"key".into()).unwrap();
    assert!(find(&mut worker).is_none());
    let mut reader = as_role(&database, &reader);
    assert_eq!(find(&mut reader).unwrap().tenant_id, tenant());
    assert!(diesel::update(api_keys::table).set(api_keys::name.eq("")).execute(&mut reader).is_err());
}

#[test]
fn every_table_with_a_tenant_has_a_policy() {
    let (database, mut owner) = migrated_apart();
    build_wall(&database, &mut owner);
    let open: Vec<String> = diesel::dsl::sql::<Text>(
        "SELECT attrelid::regclass::text FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
         WHERE attname = 'tenant_id' AND relkind IN ('r', 'p') AND NOT relrowsecurity AND attrelid >= 16384",
    )
    .load(&mut owner)
    .unwrap();
    assert!(open.is_empty(), "docs/row_level_security.md leaves out {open:?}");
}

#[test]
fn any_text_is_set_as_the_tenant_and_never_run_as_sql() {
    let (_database, mut conn) = migrated();
    for setting in ["on", "off"] {
        conn.batch_execute(&format!("SET standard_conforming_strings = {setting}")).unwrap();
        let texts = prop_oneof![
            Just("'; SET ROLE postgres; --".to_owned()),
            Just("\\'; COMMIT; --".to_owned()),
            "[\\\\'\"$;E -]{0,20}",
            any::<String>().prop_map(|text| text.replace('\0', "")),
        ];
        let conn = std::cell::RefCell::new(&mut conn);
        TestRunner::new(Config { cases: 256, failure_persistence: None, ..Config::default() })
            .run(&texts, |text| {
                let said =
                    Transaction::attempts(1).run_for(&mut conn.borrow_mut(), &text.as_str().into(), |conn| {
                        let setting = diesel::dsl::sql::<Text>("current_setting('api_keys.tenant_id')");
                        Ok::<_, Error>(diesel::select(setting).get_result::<String>(conn)?)
                    });
                assert_eq!(said.unwrap(), text);
                Ok(())
            })
            .unwrap();
    }
    let refused = Transaction::attempts(1).run_for(&mut conn, &"a\0b".into(), |_| Ok::<_, Error>(()));
    assert!(matches!(refused, Err(Error::NulByte { column: "tenant_id" })), "{refused:?}");
}

/// The median, in microseconds.
fn median(mut times: Vec<Duration>) -> u128 {
    times.sort_unstable();
    times[times.len() / 2].as_micros()
}

#[test]
#[ignore = "measures: cargo test --release --test it row_level_security -- --ignored --nocapture"]
fn row_level_security_is_measured() {
    const ROUNDS: usize = 3000;
    type Call = fn(&mut PgConnection) -> Result<()>;
    let (database, mut owner) = migrated_apart();
    owner
        .batch_execute(&format!(
            "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, created_at)
             SELECT n, CASE WHEN n % 2 = 0 THEN '{TENANT}' ELSE 'tenant ' || n % 5000 END, 'Key', 'sk-live', n,
                    timestamptz '2026-01-01Z' + n * interval '1 second'
             FROM generate_series(1, 200000) AS n"
        ))
        .unwrap();
    owner.batch_execute("VACUUM ANALYZE api_keys").unwrap();
    let calls: [(&str, Call); 4] = [
        ("`fetch_key_by_id`", |conn| {
            KeysDriver::new(conn).fetch_key_by_id(&tenant(), &key("1000")).map(drop)
        }),
        ("`fetch_keys`, 50 of 100,000", |conn| {
            KeysDriver::new(conn).fetch_keys(&tenant(), Page::default()).map(drop)
        }),
        ("`count_keys_up_to`, 101", |conn| KeysDriver::new(conn).count_keys_up_to(&tenant(), 101).map(drop)),
        ("`record_key_uses`, one key", |conn| {
            let at = at("2026-01-01T00:00:00Z");
            let used = KeyUse { tenant_id: tenant(), key_id: key("1000"), count: 1, at };
            KeysDriver::new(conn).record_key_uses(&[used]).map(drop)
        }),
    ];
    let once = Transaction::attempts(1);
    let mut before = database.connect().unwrap();
    let mut measured = Vec::new();
    for (name, call) in calls {
        let mut times = [vec![], vec![]];
        for _ in 0..ROUNDS {
            let started = Instant::now();
            call(&mut before).unwrap();
            times[0].push(started.elapsed());
            let started = Instant::now();
            once.run(&mut before, call).unwrap();
            times[1].push(started.elapsed());
        }
        measured.push((name, call, times.map(median)));
    }
    let mut worker = build_wall(&database, &mut owner);
    println!("| | without a transaction | in a transaction | behind the wall |\n|---|---|---|---|");
    for (name, call, [plain, transaction]) in measured {
        let times = (0..ROUNDS).map(|_| {
            let started = Instant::now();
            once.run_for(&mut worker, &tenant(), call).unwrap();
            started.elapsed()
        });
        println!("| {name} | {plain} us | {transaction} us | {} us |", median(times.collect()));
    }
}
