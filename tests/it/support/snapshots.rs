//! Makes snapshots to compare with, because a struct literal does not compile outside the crate.

use api_keys_driver::KeyUsageSnapshot;

use super::decimal;

/// A snapshot with other fields, because a struct literal does not compile outside the crate.
macro_rules! with {
    ($snapshot:expr, $($field:ident: $value:expr),* $(,)?) => {{
        let mut changed = $snapshot;
        $(changed.$field = $value;)*
        changed
    }};
}
pub(crate) use with;

/// Asserts each named field of a snapshot.
macro_rules! assert_fields {
    ($snapshot:expr, $($field:ident: $value:expr),* $(,)?) => {{
        let snapshot = $snapshot.clone();
        assert_eq!(snapshot, $crate::support::with!(snapshot.clone(), $($field: $value),*));
    }};
}
pub(crate) use assert_fields;

/// The usage with this number and cost.
pub(crate) fn usage_of(request_count: i64, spend_cents: &str) -> KeyUsageSnapshot {
    with!(KeyUsageSnapshot::default(), request_count: request_count, spend_cents: decimal(spend_cents))
}
