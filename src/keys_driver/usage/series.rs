//! What a key's calls add up to, by the hour or the day.

use std::ops::Range;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

use super::KeyUsageSnapshot;
use crate::keys_driver::KeysDriver;
use crate::time::whole_micros;
use crate::{Error, KeyId, Result, TenantId};

/// How long a bar of a usage chart is. Both begin with the clock in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Bucket {
    /// From minute 0 to the next.
    Hour,
    /// From midnight to midnight.
    Day,
}

/// What the calls of a stretch of time add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct UsageBucket {
    /// When the hour or the day begins.
    pub start: DateTime<Utc>,
    /// What its calls add up to, as far as they lie within the range that was asked for.
    pub usage: KeyUsageSnapshot,
}

impl Bucket {
    /// The most buckets that a series may have: over a year of hours.
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
    /// Adds up the calls that were made with a key, by the hour or the day, oldest first.
    ///
    /// The range is half-open: a call at its start counts, one at its end does not. Every bucket that the
    /// range touches is there, also an empty one. A range that starts or ends within a bucket takes a
    /// part of it, and of its calls; the bucket's `start` is then before the range's. What counts as a
    /// call, and of whom, is as in [`fetch_key_usage`](Self::fetch_key_usage), so that the buckets add
    /// up to it. A range that is empty or ends before it starts has no buckets.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyBuckets`] before anything is sent, when the range touches more than [`Bucket::MAX_BUCKETS`].
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
