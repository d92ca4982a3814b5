//! Builds and runs the benchmark's own package, which `cargo test` does not build.

use std::env;
use std::process::{Command, exit};

fn main() {
    let mut benchmark = Command::new(env!("CARGO"));
    benchmark.args([
        "run",
        "--release",
        "--manifest-path",
        concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/Cargo.toml"),
        "--",
    ]);
    // `cargo bench` adds a flag for the standard harness, which this benchmark does not use.
    benchmark.args(env::args().skip(1).filter(|argument| argument != "--bench"));
    let status = benchmark.status().expect("cargo runs");
    exit(status.code().unwrap_or(1));
}
