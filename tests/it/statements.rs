//! The statements that are sent: one per method, limited to the tenant, prepared once, without the hash.

use diesel::prelude::*;

use crate::every_method::{Input, METHODS, WITHOUT_TENANT, confinement};
use crate::support::{CallRow, KeyRow, TENANT, migrated, statements_of};

/// The methods whose statements contain the column of the hash. None of them shows its value in a log.
const NAMING_THE_HASH: &[&str] = &["insert_key", "insert_keys", "insert_key_successor", "fetch_key_by_hash"];

#[test]
fn each_method_is_one_statement_confined_to_the_tenant_without_the_hash() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    CallRow::default().insert(&mut conn);

    for method in METHODS {
        let (_, statements) = statements_of(&mut conn, |conn| {
            conn.test_transaction(|conn| (method.call)(conn, &Input::default()))
        });
        let own: Vec<_> =
            statements.iter().filter(|sql| !matches!(sql.as_str(), "BEGIN" | "ROLLBACK")).collect();
        assert_eq!(own.len(), 1 + usize::from(method.locks_first), "{}: {own:#?}", method.name);
        for (index, statement) in own.iter().enumerate() {
            let is_the_lock = method.locks_first && index == 0;
            if !WITHOUT_TENANT.contains(&method.name) {
                let confined = confinement(method.name);
                assert!(statement.contains(confined), "{}: {statement}", method.name);
                assert!(statement.contains(TENANT), "{}: {statement}", method.name);
            }
            if NAMING_THE_HASH.contains(&method.name) && !is_the_lock {
                assert!(statement.contains("KeyHash(..)"), "{}: {statement}", method.name);
            } else {
                assert!(!statement.contains("key_hash"), "{}: {statement}", method.name);
            }
            assert!(!statement.contains("SELECT *"), "{}: {statement}", method.name);
        }
    }
}

#[derive(QueryableByName)]
struct PreparedStatement {
    #[diesel(sql_type = diesel::sql_types::Text)]
    statement: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    uses: i64,
}

#[test]
fn each_statement_is_prepared_once_per_connection() {
    const ROUNDS: i64 = 7;
    let (database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);

    let mut conn = database.connect().unwrap();
    let ((), sent) = statements_of(&mut conn, |conn| {
        for method in METHODS.iter().cycle().take(METHODS.len() * 7) {
            conn.test_transaction(|conn| (method.call)(conn, &Input::default()));
        }
    });
    let mut sent: Vec<_> = sent.iter().filter_map(|sql| sql.split(" -- binds:").next()).collect();
    sent.retain(|sql| !matches!(*sql, "BEGIN" | "ROLLBACK"));
    sent.sort_unstable();
    sent.dedup();

    let prepared: Vec<PreparedStatement> = diesel::sql_query(
        "SELECT statement, generic_plans + custom_plans AS uses FROM pg_prepared_statements
         WHERE statement ~ 'api_keys|api_key_events|proxy_calls|usage_' AND statement !~ 'pg_prepared_statements' ORDER BY statement",
    )
    .load(&mut conn)
    .unwrap();
    for PreparedStatement { statement, uses } in &prepared {
        assert!(uses % ROUNDS == 0, "{uses} uses of {statement}");
    }
    assert_eq!(prepared.len(), sent.len(), "sent: {sent:#?}");
}
