//! Prints the URL of an empty database, and keeps it until standard input ends.
//!
//! ```text
//! cargo run -p throwaway_postgres
//! ```

use std::io::{self, Read};

fn main() -> throwaway_postgres::Result<()> {
    let database = throwaway_postgres::empty()?;
    println!("{}", database.url());
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
