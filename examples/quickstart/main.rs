//! The work of an engine, from an empty database to a key that is frozen and unfrozen.
//!
//! ```text
//! cargo run --example quickstart                  # a few calls of its own
//! cargo run --example quickstart -- trace.csv     # real calls: TIMESTAMP,ContextTokens,GeneratedTokens
//! ```
//!
//! It runs on a throwaway PostgreSQL. With `DATABASE_URL` set, it creates a scratch database on that
//! server and drops it again.

mod calls;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use api_keys_driver::schema::proxy_calls;
use api_keys_driver::{
    ApiKeysFacadeDriver, Error, KeyId, KeySnapshot, KeyStatus, KeyUsageSnapshot, KeysDriver, NewKey, Page,
    Result, TenantId, get_keys_driver, migrate,
};
use chrono::{DateTime, Datelike, TimeDelta, Utc};
use clap::Parser;
use diesel::prelude::*;
use throwaway_postgres::{BoxError, Database, Server};

use calls::Call;

const TENANT: &str = "7d0e7c1e-6a55-4c53-9a0a-0d5d9b1f4c11";

/// The keys of the tenant: id, name, and whether a test scenario made it.
const KEYS: [(&str, &str, bool); 4] = [
    ("key-production", "Production", false),
    ("key-staging", "Staging", false),
    ("key-laptop", "Ada's laptop", false),
    ("key-load-test", "Nightly load test", true),
];

/// Walks through what an engine does with API keys, on a PostgreSQL of its own.
///
/// With `DATABASE_URL` set, it creates a scratch database on that server and drops it again.
#[derive(Parser)]
struct Arguments {
    /// A CSV file of calls, whose first line is TIMESTAMP,ContextTokens,GeneratedTokens. Without it, the
    /// example invents some.
    trace: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error}");
            let mut source = error.source();
            while let Some(error) = source {
                eprintln!("  because: {}", error.to_string().trim_end());
                source = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), BoxError> {
    let calls = match &arguments.trace {
        Some(path) => calls::read(path).map_err(|error| format!("{}: {error}", path.display()))?,
        None => calls::invented(),
    };
    let database = scratch_database()?;
    let mut conn = database.connect()?;
    let tenant_id = TenantId::from(TENANT);

    title("An empty database is migrated");
    for name in migrate(&mut conn)? {
        println!("  {name}");
    }

    title("Keys and calls are loaded");
    load(&mut conn, &calls)?;
    println!("  {} keys, {} calls", KEYS.len(), calls.len());

    // The engine's clock shows the time of the last call, so that "today" is also right for a trace of another year.
    let now = calls.last().ok_or("no calls")?.created_at;

    title("Pages of two keys, newest first");
    print_pages(&mut conn, &tenant_id)?;

    title(&format!("Usage, as of {}", now.format("%Y-%m-%d %H:%M:%S UTC")));
    print_usage(&mut conn, &tenant_id, now)?;

    title("The customer's view: no synthetic keys");
    print_customers_view(&mut conn, &tenant_id)?;

    let leaked = KeyId::from("key-laptop");
    title("The laptop's key leaks, and two workers race to freeze it");
    race_to_freeze(&database, &tenant_id, &leaked, now)?;
    print_state(&mut conn, &tenant_id, &leaked)?;

    title("The leak is dealt with, and the key is unfrozen");
    unfreeze(&mut conn, &tenant_id, &leaked)?;
    print_state(&mut conn, &tenant_id, &leaked)?;
    Ok(())
}

fn scratch_database() -> Result<Database, BoxError> {
    let Some(url) = std::env::var_os("DATABASE_URL") else { return throwaway_postgres::empty() };
    let url = url.into_string().map_err(|_| "DATABASE_URL is not UTF-8 text: correct it, or unset it")?;
    // An error of the crate's own quotes no password.
    PgConnection::establish(&url).map_err(Error::from)?;
    let database = Server::at(url)?.create_database();
    database.map_err(|error| {
        format!("{error}: let the role of DATABASE_URL create databases, or unset it").into()
    })
}

fn title(text: &str) {
    println!("\n{text}");
}

/// Keys through the driver, and calls through the crate's schema, as the proxy would write them.
fn load(conn: &mut PgConnection, calls: &[Call]) -> Result<()> {
    let created_at =
        calls.first().map_or_else(DateTime::default, |call| call.created_at) - TimeDelta::days(1);
    for ((id, name, is_synthetic), index) in KEYS.into_iter().zip(0..) {
        let (prefix, hash) = (format!("sk-live-{index:04}"), format!("{index:064x}"));
        let created_at = created_at + TimeDelta::hours(index);
        let key = NewKey {
            is_synthetic,
            ..NewKey::new(TENANT.into(), id.into(), name, prefix, hash.into(), created_at)
        };
        KeysDriver::new(conn).insert_key(&key)?;
    }

    for (batch, calls) in calls.chunks(1000).enumerate() {
        let rows = calls.iter().enumerate().map(|(index, call)| {
            let (key, _, _) = KEYS[index % KEYS.len()];
            (
                proxy_calls::id.eq(format!("call-{batch}-{index}")),
                proxy_calls::tenant_id.eq(TENANT),
                proxy_calls::api_key_id.eq(key),
                proxy_calls::endpoint.eq("/v1/chat/completions"),
                proxy_calls::model.eq("large"),
                proxy_calls::request_hash.eq(""),
                proxy_calls::request_json.eq("{}"),
                proxy_calls::input_tokens.eq(call.input_tokens),
                proxy_calls::output_tokens.eq(call.output_tokens),
                proxy_calls::cost_cents.eq(call.cost_cents()),
                proxy_calls::created_at.eq(call.created_at),
            )
        });
        diesel::insert_into(proxy_calls::table).values(rows.collect::<Vec<_>>()).execute(conn)?;
    }
    Ok(())
}

fn print_pages(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<()> {
    let mut keys = get_keys_driver(conn);
    println!("  {} keys in all", keys.count_keys(tenant_id)?);
    let mut page = Page { limit: 2, offset: 0 };
    loop {
        let found = keys.fetch_keys(tenant_id, page)?;
        if found.is_empty() {
            return Ok(());
        }
        println!("  from {}:", page.offset);
        for key in found {
            println!("    {:<18} {}... created {}", key.name, key.key_prefix, key.created_at.format("%F %T"));
        }
        page.offset += page.limit;
    }
}

fn print_usage(conn: &mut PgConnection, tenant_id: &TenantId, now: DateTime<Utc>) -> Result<(), BoxError> {
    let midnight = now.date_naive().and_hms_opt(0, 0, 0).ok_or("midnight")?.and_utc();
    let first_of_month = midnight - TimeDelta::days(i64::from(midnight.day0()));

    let mut keys = KeysDriver::new(conn);
    let mut together = [KeyUsageSnapshot::default(), KeyUsageSnapshot::default()];
    println!("  {:<18} {:>30} {:>30}", "", "today", "this month");
    for key in keys.fetch_keys(tenant_id, Page::default())? {
        let today = keys.fetch_key_usage(tenant_id, &key.id, midnight)?;
        let month = keys.fetch_key_usage(tenant_id, &key.id, first_of_month)?;
        let usage = [today, month];
        print_usage_line(&key.name, &usage);
        for (sum, usage) in together.iter_mut().zip(usage) {
            sum.request_count += usage.request_count;
            sum.spend_cents += usage.spend_cents;
        }
    }
    print_usage_line("together", &together);
    Ok(())
}

fn print_usage_line(label: &str, [today, month]: &[KeyUsageSnapshot; 2]) {
    let column =
        |usage: &KeyUsageSnapshot| format!("{} calls {:>12.4} ct", usage.request_count, usage.spend_cents);
    println!("  {label:<18} {:>30} {:>30}", column(today), column(month));
}

fn print_customers_view(conn: &mut PgConnection, tenant_id: &TenantId) -> Result<()> {
    let mut api_keys = ApiKeysFacadeDriver::new(conn);
    println!("  {} active keys", api_keys.count_api_keys(tenant_id, Some(&KeyStatus::Active))?);
    for key in api_keys.fetch_api_keys(tenant_id, Some(&KeyStatus::Active), Page::default())? {
        println!("    {:<18} {}...", key.name, key.key_prefix);
    }
    let hidden = api_keys.fetch_api_key_by_id(tenant_id, &KeyId::from("key-load-test"))?;
    println!("  the load test's key: {}", if hidden.is_none() { "not there" } else { "there" });
    Ok(())
}

/// The engine's rule: lock the key, and freeze it unless it is already frozen.
fn freeze_once(
    conn: &mut PgConnection,
    tenant_id: &TenantId,
    key_id: &KeyId,
    now: DateTime<Utc>,
    when_locked: impl FnOnce(),
) -> Result<Option<KeySnapshot>> {
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let Some(key) = keys.fetch_key_for_update(tenant_id, key_id)? else { return Ok(None) };
        when_locked();
        if key.is_frozen {
            return Ok(None);
        }
        keys.update_key_frozen(key, now).map(Some)
    })
}

fn race_to_freeze(
    database: &Database,
    tenant_id: &TenantId,
    key_id: &KeyId,
    now: DateTime<Utc>,
) -> Result<(), BoxError> {
    let (mut first, mut second, mut observer) =
        (database.connect()?, database.connect()?, database.connect()?);
    let (locked, is_locked) = mpsc::channel();

    thread::scope(|scope| {
        let second = scope.spawn(move || {
            is_locked.recv()?;
            println!("  worker 2: wants the lock");
            let outcome =
                freeze_once(&mut second, tenant_id, key_id, now, || println!("  worker 2: has the lock"))?;
            println!(
                "  worker 2: {}",
                if outcome.is_some() { "froze the key" } else { "finds it frozen, leaves it" }
            );
            Ok::<_, BoxError>(())
        });
        freeze_once(&mut first, tenant_id, key_id, now, || {
            println!("  worker 1: has the lock");
            let _ = locked.send(());
            wait_until_somebody_waits(&mut observer);
            println!("  worker 2: waits for the row");
            println!("  worker 1: freezes the key and commits");
        })?;
        second.join().expect("the second worker does not panic")
    })
}

/// Waits until the server reports the wait, so that the race has the same result in each run.
fn wait_until_somebody_waits(conn: &mut PgConnection) {
    let waiting =
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while diesel::sql_query(waiting).execute(conn).is_ok_and(|rows| rows == 0) {
        thread::yield_now();
    }
}

fn unfreeze(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Result<()> {
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        if let Some(key) = keys.fetch_key_for_update(tenant_id, key_id)? {
            keys.update_key_unfrozen(key)?;
        }
        Ok::<_, Error>(())
    })
}

fn print_state(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Result<()> {
    match KeysDriver::new(conn).fetch_key_by_id(tenant_id, key_id)? {
        Some(KeySnapshot { name, frozen_at: Some(frozen_at), .. }) => {
            println!("  {name}: frozen since {}", frozen_at.format("%F %T%.6f UTC"));
        }
        Some(KeySnapshot { name, .. }) => println!("  {name}: not frozen"),
        None => println!("  {key_id}: not there"),
    }
    Ok(())
}
