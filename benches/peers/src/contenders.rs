//! The contenders, by their names in the tables.

use crate::contender::Contender;
use crate::libpq::Libpq;
use crate::ours::Ours;
use crate::plain_diesel::PlainDiesel;
use crate::postgres_crate::Postgres;
use crate::sqlx_crate::Sqlx;

pub const NAMES: [&str; 5] = ["libpq", "this crate", "postgres", "sqlx", "plain Diesel"];

pub fn connect(name: &str, url: &str) -> Box<dyn Contender> {
    match name {
        "this crate" => Box::new(Ours::connect(url)),
        "libpq" => Box::new(Libpq::connect(url)),
        "postgres" => Box::new(Postgres::connect(url)),
        "sqlx" => Box::new(Sqlx::connect(url)),
        "plain Diesel" => Box::new(PlainDiesel::connect(url)),
        _ => panic!("no contender is called {name}"),
    }
}
