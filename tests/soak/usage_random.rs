//! Random numbers, times and tenants.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

use super::TENANTS;

/// A small random number generator that differs for each thread.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    pub(super) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).expect("an index")]
    }

    /// Seconds before now, to the microsecond; some are in the future.
    pub(super) fn age(&mut self) -> TimeDelta {
        let seconds = match self.below(20) {
            0..10 => 0,
            10..14 => self.below(120),
            14..16 => self.below(7_200),
            16..19 => self.below(40 * 86_400),
            _ => return -TimeDelta::microseconds(i64::try_from(self.below(86_400_000_000)).expect("small")),
        };
        TimeDelta::microseconds(i64::try_from(seconds * 1_000_000 + self.below(1_000_000)).expect("small"))
    }

    pub(super) fn moment(&mut self) -> DateTime<Utc> {
        let moment = Utc::now() - if self.below(3) == 0 { TimeDelta::seconds(0) } else { self.age() };
        let moment = match self.below(8) {
            0 => moment.duration_trunc(TimeDelta::minutes(15)).expect("a quarter hour"),
            1 => moment.duration_trunc(TimeDelta::days(1)).expect("a day"),
            _ => moment,
        };
        DateTime::from_timestamp_micros(moment.timestamp_micros()).expect("a time")
    }

    pub(super) fn tenant(&mut self) -> &'static str {
        self.of(&TENANTS)
    }
}
