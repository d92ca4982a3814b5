//! Random statements of writers of calls.

use chrono::Utc;

use super::KEYS;
use super::random::Random;

/// A random statement of a writer.
pub(super) fn statement(random: &mut Random) -> String {
    let columns =
        "(id, tenant_id, api_key_id, endpoint, model, request_hash, request_json, cost_cents, created_at)";
    let some = |random: &mut Random| {
        let rows = random.of(&[1, 1, 5, 40]);
        format!(
            "ctid = ANY (ARRAY(SELECT ctid FROM proxy_calls TABLESAMPLE SYSTEM (5) LIMIT {rows} FOR UPDATE SKIP LOCKED))"
        )
    };
    match random.below(100) {
        0..50 => {
            let rows: Vec<_> =
                (0..random.of(&[1, 1, 1, 3, 20])).map(|_| row(random, "gen_random_uuid()::text")).collect();
            format!("INSERT INTO proxy_calls {columns} VALUES {}", rows.join(", "))
        }
        50..58 => {
            let id = format!("'u{}'", random.below(300));
            let action = random.of(&[
                "NOTHING",
                "UPDATE SET cost_cents = excluded.cost_cents",
                "UPDATE SET status_code = 1",
                "UPDATE SET cost_cents = coalesce(proxy_calls.cost_cents, 0) + 1, created_at = excluded.created_at",
            ]);
            format!(
                "INSERT INTO proxy_calls {columns} VALUES {} ON CONFLICT (id) DO {action}",
                row(random, &id)
            )
        }
        58..74 => {
            let change = random.of(&[
                "cost_cents = 3.5",
                "cost_cents = NULL, api_key_id = tenant_id || '1'",
                "status_code = 200",
                "created_at = created_at - interval '20 minutes'",
                "created_at = created_at + interval '7 minutes'",
                "tenant_id = 'b', api_key_id = 'b2'",
                "api_key_id = NULL",
                "response_json = '{}'",
                "cost_cents = CASE WHEN cost_cents = 'NaN' THEN 1 ELSE cost_cents END",
            ]);
            format!("UPDATE proxy_calls SET {change} WHERE {}", some(random))
        }
        74..88 => format!("DELETE FROM proxy_calls WHERE {}", some(random)),
        88..96 => format!(
            "CREATE TEMP TABLE IF NOT EXISTS batch (LIKE proxy_calls); TRUNCATE batch;
             INSERT INTO batch {columns} VALUES {}, {}; INSERT INTO proxy_calls SELECT * FROM batch",
            row(random, "gen_random_uuid()::text"),
            row(random, "gen_random_uuid()::text")
        ),
        // From a program, because `batch_execute` cannot send rows.
        _ => format!(
            "COPY proxy_calls {columns} FROM PROGRAM 'for i in 1 2 3 4 5; do echo \"copied-{}-$i,{tenant},{tenant}{},e,m,h,j,{},{}\"; done' (FORMAT csv)",
            random.below(u64::MAX),
            random.below(KEYS),
            random.below(9),
            (Utc::now() - random.age()).to_rfc3339(),
            tenant = random.tenant(),
        ),
    }
}

fn row(random: &mut Random, id: &str) -> String {
    let tenant = random.tenant();
    let key = if random.below(30) == 0 { "NULL".into() } else { format!("'{tenant}{}'", random.below(KEYS)) };
    let cost = match random.below(200) {
        0..20 => "NULL".to_owned(),
        20 if tenant == "b" && key == "'b5'" => "'NaN'".to_owned(),
        n => format!("{}.{:04}", n % 20, random.below(10_000)),
    };
    let age = random.age().num_microseconds().expect("small");
    format!(
        "({id}, '{tenant}', {key}, 'e', 'm', 'h', '{{}}', {cost}, clock_timestamp() - {age} * interval '1 microsecond')"
    )
}
