//! A tool for a person on call: it finds, shows and freezes keys, and follows their changes.
//!
//! ```text
//! cargo run --example oncall -- find prefix sk-live-4f2a
//! cargo run --example oncall -- show <tenant> <key>
//! cargo run --example oncall -- freeze <tenant> <key> --by ada --reason "seen on a forum"
//! cargo run --example oncall -- --help
//! ```
//!
//! It works on the database of `DATABASE_URL`. Without it, each run gets a throwaway server with demo data.

mod demo;
mod find;
mod follow;
mod freeze;
mod frozen;
mod show;

use std::error::Error;
use std::process::ExitCode;

use api_keys_driver::{KeyId, TenantId};
use clap::{Args, Parser, Subcommand};
use diesel::{Connection, PgConnection};

/// Finds, shows, freezes and follows API keys.
///
/// The database is that of `DATABASE_URL`. If it is not set, each run starts a throwaway server with demo data.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Finds keys by their prefix, hash or id.
    #[command(subcommand)]
    Find(find::By),
    /// Shows a key: its state, its history, and its calls of the last day.
    Show(KeyArgs),
    /// Freezes a key, so that engines deny it.
    Freeze(freeze::Freeze),
    /// Unfreezes a key. A revoked key stays revoked.
    Unfreeze(KeyArgs),
    /// Lists the keys of all tenants that are frozen.
    Frozen,
    /// Prints the changes of the keys of all tenants, until it is interrupted.
    Follow(follow::Follow),
}

/// Identifies a key.
#[derive(Args)]
struct KeyArgs {
    /// The tenant's id
    tenant: String,
    /// The key's id
    key: String,
}

impl KeyArgs {
    fn tenant_id(&self) -> TenantId {
        self.tenant.as_str().into()
    }

    fn key_id(&self) -> KeyId {
        self.key.as_str().into()
    }

    fn not_found(&self) -> Box<dyn Error + Send + Sync> {
        format!("tenant {} has no key {}: check both ids, or look with `find`", self.tenant, self.key).into()
    }
}

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oncall: {error}");
            let mut source = error.source();
            while let Some(error) = source {
                eprintln!("  because: {}", error.to_string().trim_end());
                source = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result {
    let Some(url) = std::env::var_os("DATABASE_URL") else {
        eprintln!("DATABASE_URL is not set: this is demo data on a throwaway server\n");
        let database = demo::database()?;
        return run_on(&mut database.connect()?, command);
    };
    let url = url.to_str().ok_or("DATABASE_URL is not UTF-8 text: correct it, or unset it")?;
    let mut conn = PgConnection::establish(url).map_err(api_keys_driver::Error::from)?;
    run_on(&mut conn, command)
}

fn run_on(conn: &mut PgConnection, command: &Command) -> Result {
    match command {
        Command::Find(by) => find::run(conn, by),
        Command::Show(place) => show::run(conn, place),
        Command::Freeze(freeze) => freeze::run(conn, freeze),
        Command::Unfreeze(place) => freeze::undo(conn, place),
        Command::Frozen => frozen::run(conn),
        Command::Follow(follow) => follow::run(conn, follow),
    }
}

/// A stored text without the characters that control the terminal or the direction of text.
fn printable(text: &str) -> String {
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
