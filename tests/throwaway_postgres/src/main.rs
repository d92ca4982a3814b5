//! Prints the URL of a migrated database, and keeps it until standard input ends.
//!
//! ```text
//! cargo run -p throwaway_postgres
//! ```

use std::io::{self, Read};

fn main() -> throwaway_postgres::Result<()> {
    let database = throwaway_postgres::migrated()?;
    println!("{}", database.url());
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
