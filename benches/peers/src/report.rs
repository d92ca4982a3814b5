//! docs/benchmarks.md and its chart.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use diesel::prelude::*;

use crate::chart::{self, thousands, time};
use crate::data::Sizes;
use crate::scaling::Line;
use crate::{Instructions, Row, Threads, contenders};

pub struct Report<'a> {
    pub server: String,
    pub rows: &'a [Row],
    pub threads: &'a [Threads],
    pub instructions: &'a [Instructions],
    pub sizes: &'a Sizes,
    pub by_keys: &'a [Line],
    pub by_calls: &'a [Line],
    pub full: bool,
}

impl Report<'_> {
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# Benchmarks\n\n\
             Written by `cargo bench{}`; figures of another machine or run differ, ratios less than times.\n\n\
             Machine: {}, {}, over a Unix socket; one connection a contender.\n\n\
             Each operation is timed in turns of at most 24 calls, every contender in the same run, on prepared \
             statements, with every processor kept awake by a thread of idle priority. libpq is used by hand: \
             binary parameters and results, every column decoded into a plain struct. libpq, the postgres crate and sqlx send \
             this crate's statements, so the difference is the client; plain Diesel is the code that its guide \
             leads to, with the statements that it makes. All answers are compared before they are timed.\n\n",
            if self.full { " -- --full" } else { "" },
            machine(),
            self.server,
        );
        text.push_str(&peers(self.rows));
        self.client(&mut text);
        self.pool(&mut text);
        self.scaling(&mut text);
        text
    }

    fn client(&self, text: &mut String) {
        text.push_str("\n## The client's own work\n\nInstructions a call in the client's process, counted by callgrind as the difference between 1,100 and 100 calls.\n\n");
        header(text, "operation", contenders::NAMES.iter().map(|name| (*name).to_owned()));
        for counted in self.instructions {
            let count = |count: &Option<u64>| count.map_or("not counted".to_owned(), thousands);
            line(text, counted.operation, counted.counts.iter().map(count));
        }
    }

    fn pool(&self, text: &mut String) {
        text.push_str("\n## Threads\n\nOne key, calls a second: this crate through an r2d2 pool of 16 connections, checked out for each call without a test query, and libpq with a connection a thread.\n\n");
        header(text, "threads", ["this crate, pooled", "libpq", "ratio"].map(str::to_owned).into_iter());
        for row in self.threads {
            let rates = [
                thousands(row.pooled as u64),
                thousands(row.libpq as u64),
                format!("{:.2}", row.pooled / row.libpq),
            ];
            line(text, &row.threads.to_string(), rates.into_iter());
        }
    }

    fn scaling(&self, text: &mut String) {
        text.push_str("\n## As the data grows\n\n![Cost against size](benchmarks.svg)\n\nMedians of this crate, by the keys of the tenant:\n\n");
        header(text, "operation", self.sizes.keys.iter().map(|&size| thousands(size.into())));
        for by_size in self.by_keys {
            line(text, by_size.name, by_size.costs.iter().map(|&cost| time(cost)));
        }
        text.push_str("\nand by the calls of the key:\n\n");
        header(text, "operation", self.sizes.calls.iter().map(|&size| thousands(size.into())));
        for by_size in self.by_calls {
            line(text, by_size.name, by_size.costs.iter().map(|&cost| time(cost)));
        }
        text.push_str("\nA count and the sum of all calls read what they count; ask for a bound or a shorter time where that is too much. An offset is passed over within the index; a cursor is not passed over at all.\n");
    }

    pub fn write(&self) {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let svg = chart::svg(&[
            ("Cost of an operation by the keys of the tenant", &self.sizes.keys, self.by_keys),
            ("Cost of an operation by the calls of the key", &self.sizes.calls, self.by_calls),
        ]);
        fs::create_dir_all(&docs).expect("the folder docs");
        fs::write(docs.join("benchmarks.md"), self.markdown()).expect("docs/benchmarks.md");
        fs::write(docs.join("benchmarks.svg"), svg).expect("docs/benchmarks.svg");
    }
}

/// The table of ratios, and the one of medians.
pub fn peers(rows: &[Row]) -> String {
    let mut text = String::new();
    text.push_str("## Against libpq by hand\n\nThe ratio of the medians, and in brackets of the tenth percentiles, which noise changes least. Each is the median of five runs on fresh connections. Below 1 is faster than libpq.\n\n");
    header(&mut text, "operation", contenders::NAMES[1..].iter().map(|name| (*name).to_owned()));
    for row in rows {
        let ratio = |index: usize| {
            let of_medians = row.median(|run| run[index].median / run[0].median);
            let of_tenths = row.median(|run| run[index].tenth / run[0].tenth);
            format!("{of_medians:.2} ({of_tenths:.2})")
        };
        line(&mut text, row.operation, (1..contenders::NAMES.len()).map(ratio));
    }
    text.push_str("\nThe medians themselves:\n\n");
    header(&mut text, "operation", contenders::NAMES.iter().map(|name| (*name).to_owned()));
    for row in rows {
        let medians = (0..contenders::NAMES.len()).map(|index| row.median(|run| run[index].median));
        line(&mut text, row.operation, medians.map(time));
    }
    text
}

fn header(text: &mut String, first: &str, columns: impl Iterator<Item = String>) {
    let columns: Vec<String> = columns.collect();
    writeln!(text, "| {first} | {} |", columns.join(" | ")).unwrap();
    writeln!(text, "|---|{}", "--:|".repeat(columns.len())).unwrap();
}

fn line(text: &mut String, first: &str, columns: impl Iterator<Item = String>) {
    writeln!(text, "| {first} | {} |", columns.collect::<Vec<_>>().join(" | ")).unwrap();
}

fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("?", |name| name.1);
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{count} processors ({model}), {}", std::env::consts::OS)
}

pub fn server_version(url: &str) -> String {
    let mut conn = PgConnection::establish(url).expect("a connection");
    diesel::define_sql_function!(fn current_setting(name: diesel::sql_types::Text) -> Text);
    let version: String =
        diesel::select(current_setting("server_version")).get_result(&mut conn).expect("a version");
    format!("PostgreSQL {version}")
}
