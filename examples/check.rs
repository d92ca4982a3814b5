//! Prints the obstacles between a database and the crate. It changes nothing there.
//!
//! ```text
//! DATABASE_URL=postgres://.. cargo run --example check
//! ```
//!
//! Without `DATABASE_URL` it prints the report of a throwaway database that lacks an index.

use std::env;
use std::process::ExitCode;
use std::time::Instant;

use api_keys_driver::{Effect, Error, Report, check, migrate};
use clap::Parser;
use comfy_table::{ContentArrangement, Table};
use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection};

/// Prints the obstacles between the database of `DATABASE_URL` and the crate. It changes nothing there.
///
/// Without `DATABASE_URL` it prints the report of a throwaway database that lacks an index.
#[derive(Parser)]
struct Arguments {}

fn main() -> ExitCode {
    Arguments::parse();
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("check: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {}", cause.to_string().trim_end());
                source = cause.source();
            }
            ExitCode::from(2)
        }
    }
}

/// Fails if something blocks `migrate` or a method.
fn run() -> throwaway_postgres::Result<ExitCode> {
    let report = match env::var_os("DATABASE_URL") {
        Some(url) => {
            let url = url.to_str().ok_or("DATABASE_URL is not UTF-8 text: correct it, or unset it")?;
            let mut conn = PgConnection::establish(url).map_err(Error::from)?;
            let started = Instant::now();
            let report = check(&mut conn)?;
            println!("read the catalog in {:?}", started.elapsed());
            report
        }
        None => on_a_throwaway_database()?,
    };
    print(&report);
    let blocks = report.obstacles.iter().any(|obstacle| obstacle.effect != Effect::Degrades);
    Ok(if blocks { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn on_a_throwaway_database() -> throwaway_postgres::Result<Report> {
    let database = throwaway_postgres::empty()?.prepare(migrate)?;
    let mut conn = database.connect()?;
    conn.batch_execute("DROP INDEX ix_api_keys_tenant_newest_first")?;
    Ok(check(&mut conn)?)
}

fn print(report: &Report) {
    let schema = report.schema.as_deref().unwrap_or("none");
    println!("PostgreSQL {}, schema {schema}", report.server_version);
    println!("migrations applied: {}, pending: {}", report.applied.len(), report.pending.len());
    for step in &report.pending {
        println!("  {step}");
    }
    if report.obstacles.is_empty() {
        println!("Nothing is in the way.");
        return;
    }
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(120);
    table.set_header(["what", "effect", "why", "action"]);
    for obstacle in &report.obstacles {
        table.add_row([&obstacle.name, &obstacle.effect.to_string(), &obstacle.why, &obstacle.action]);
    }
    println!("{table}");
}
