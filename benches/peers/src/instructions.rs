//! The work of the client alone: instructions per call, counted by callgrind.

use std::process::Command;

use crate::contenders;
use crate::data::{TENANT_KEYS, key, tenant};

pub const OPERATIONS: [&str; 2] = ["one key", "page of 50"];
const FEW: usize = 100;
const MANY: usize = 1_100;

/// Runs an operation a number of times in the counted process.
pub fn run(url: &str, name: &str, operation: &str, calls: usize) {
    let mut contender = contenders::connect(name, url);
    let (tenant_id, key_id) = (tenant(TENANT_KEYS), key(TENANT_KEYS, 7));
    for _ in 0..calls {
        match operation {
            "one key" => drop(std::hint::black_box(contender.one_key(&tenant_id, &key_id))),
            _ => drop(std::hint::black_box(contender.page(&tenant_id, 50))),
        }
    }
}

/// The instructions per call; `None` without valgrind. Both counts include those of connecting, so the difference does
/// not.
pub fn count(url: &str, name: &str, operation: &str) -> Option<u64> {
    let collected = |calls: usize| {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().unwrap())
            .args(["calls", url, name, operation, &calls.to_string()])
            .output()
            .ok()?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let count = told.lines().find_map(|line| line.split_once("Collected :"))?.1.trim().to_owned();
        count.parse::<u64>().ok()
    };
    Some((collected(MANY)? - collected(FEW)?) / (MANY - FEW) as u64)
}
