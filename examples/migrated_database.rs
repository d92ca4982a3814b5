//! Prints the URL of a migrated database, and keeps the database until standard input ends.
//!
//! ```text
//! cargo run --example migrated_database
//! ```

use std::io::{self, Read};

fn main() -> throwaway_postgres::Result<()> {
    let database = throwaway_postgres::empty()?.prepare(api_keys_driver::migrate)?;
    println!("{}", database.url());
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
