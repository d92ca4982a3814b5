//! The usage of a key by the hour or the day.

use std::ops::Range;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

use super::KeyUsageSnapshot;
use crate::keys_driver::KeysDriver;
use crate::time::whole_micros;
use crate::{Error, KeyId, Result, TenantId};

/// The length of a bucket of a usage series. Buckets are aligned to hours and days in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Bucket {
    /// A full hour of the clock.
    Hour,
    /// A day from midnight to midnight.
    Day,
}

/// The usage of one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct UsageBucket {
    /// When the hour or the day begins.
    pub start: DateTime<Utc>,
    /// The usage of its calls that lie within the requested range.
    pub usage: KeyUsageSnapshot,
}

impl Bucket {
    /// The maximum number of buckets of a series: over a year of hours.
    pub const MAX_BUCKETS: i64 = 10_000;

    const fn seconds(self) -> i64 {
        match self {
            Self::Hour => 60 * 60,
            Self::Day => 24 * 60 * 60,
        }
    }

    /// The start of the bucket that a moment lies in.
    fn start_of(self, time: DateTime<Utc>) -> DateTime<Utc> {
        time.trunc_subsecs(0) - TimeDelta::seconds(time.timestamp().rem_euclid(self.seconds()))
    }
}

impl KeysDriver<'_> {
    /// Returns the usage of a key by the hour or the day, oldest first.
    ///
    /// The range is half-open: a call at its start counts, and a call at its end does not. The answer has every bucket
    /// that the range touches, also empty ones. If the range starts or ends within a bucket, only the calls within the
    /// range count, and the first bucket's `start` may be before the range. The same calls count as in
    /// [`fetch_key_usage`](Self::fetch_key_usage), so the buckets add up to its sum. A range that is empty or ends
    /// before it starts has no buckets.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyBuckets`] before anything is sent, if the range touches more than [`Bucket::MAX_BUCKETS`]
    /// buckets. [`Error::CostNotANumber`] if the cost of a call in the range is `NaN`.
    ///
    /// ```
    /// use api_keys_driver::{Bucket, KeyId, KeysDriver, Result, TenantId};
    /// use chrono::{DateTime, TimeDelta, Utc};
    /// use diesel::PgConnection;
    ///
    /// /// The requests of each of the last 24 hours and of the current hour.
    /// fn requests(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Result<Vec<i64>> {
    ///     let range = now - TimeDelta::hours(24)..now;
    ///     let hours = KeysDriver::new(conn).fetch_key_usage_series(tenant_id, key_id, range, Bucket::Hour)?;
    ///     Ok(hours.into_iter().map(|hour| hour.usage.request_count).collect())
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # let now = "2026-01-02T12:34:56Z".parse().unwrap();
    /// # assert_eq!(requests(&mut conn, &"tenant".into(), &"key".into(), now).unwrap(), [0; 25]);
    /// ```
    pub fn fetch_key_usage_series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        range: Range<DateTime<Utc>>,
        bucket: Bucket,
    ) -> Result<Vec<UsageBucket>> {
        let (from, to) = (whole_micros(range.start), whole_micros(range.end));
        if from >= to {
            return Ok(Vec::new());
        }
        let first = bucket.start_of(from);
        let last = bucket.start_of(to - TimeDelta::microseconds(1));
        let buckets = (last - first).num_seconds() / bucket.seconds() + 1;
        if buckets > Bucket::MAX_BUCKETS {
            return Err(Error::TooManyBuckets(buckets));
        }

        let length = TimeDelta::seconds(bucket.seconds());
        let starts: Vec<_> = std::iter::successors(Some(first), |start| start.checked_add_signed(length))
            .take_while(|start| *start <= last)
            .collect();
        // The first and the last bucket are cut at the ends of the range.
        let mut boundaries = starts.clone();
        boundaries[0] = from;
        boundaries.push(to);
        let sums = self.fetch_key_usage_between(tenant_id, key_id, &boundaries)?;
        Ok(starts.into_iter().zip(sums).map(|(start, usage)| UsageBucket { start, usage }).collect())
    }
}
