//! A short run of the soak. The long one is `cargo run --release --example soak`.

use std::time::Duration;

#[path = "../soak/soak.rs"]
#[expect(clippy::module_inception, reason = "an example of its own")]
mod soak;

#[test]
fn a_short_soak_loses_nothing() {
    let counts = soak::soak(Duration::from_secs(6));
    assert!(counts.is_good(), "\n{counts}");
}

#[test]
fn three_failovers_lose_and_repeat_no_change_and_skip_no_event() {
    let counts = soak::failover(3);
    assert!(counts.is_good(), "\n{counts}");
}
