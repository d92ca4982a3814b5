//! A short run of the soak of usage. The long one is `cargo run --release --example usage_soak`.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

#[path = "../soak/usage.rs"]
mod usage;

#[test]
fn every_method_returns_the_plain_sum_under_faults() {
    let counts = usage::fire(Duration::from_secs(20));
    eprint!("{counts}");
    assert_eq!(counts.differences.load(Relaxed), 0, "\n{counts}");
    assert!(counts.tried_everything(), "\n{counts}");
}
