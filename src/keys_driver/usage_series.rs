//! What a key's calls add up to, by the hour or the day.

use std::ops::Range;

use bigdecimal::BigDecimal;
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use diesel::data_types::PgInterval;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Interval, Nullable, Numeric, Text, Timestamptz};

use super::{KeyUsageSnapshot, KeysDriver};
use crate::send::RunStatement;
use crate::time::{Time, whole_micros};
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
    pub const MOST: i64 = 10_000;

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
    /// [`Error::TooManyBuckets`] before anything is sent, when the range touches more than [`Bucket::MOST`].
    ///
    /// ```
    /// use api_keys_driver::{Bucket, KeyId, KeysDriver, Result, TenantId};
    /// use chrono::{DateTime, TimeDelta, Utc};
    /// use diesel::PgConnection;
    ///
    /// /// The requests of each of the last 24 hours and of the hour that runs.
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
        if buckets > Bucket::MOST {
            return Err(Error::TooManyBuckets(buckets));
        }

        let length = TimeDelta::seconds(bucket.seconds());
        let starts = std::iter::successors(Some(first), |start| Some(*start + length));
        let starts = starts.take_while(|start| *start <= last).map(Time::from).collect();
        // A day in microseconds is 24 hours, whatever the session's time zone makes of a day.
        let length = PgInterval::from_microseconds(bucket.seconds() * 1_000_000);
        let (from, to) = (from.into(), to.into());
        let series = Series { tenant_id, key_id, from, to, starts, length };
        let rows: Vec<(Time, i64, Option<BigDecimal>)> = series.read_all(self.conn)?;
        let buckets = rows.into_iter().map(|(start, request_count, spend_cents)| {
            let usage = KeyUsageSnapshot { request_count, spend_cents: spend_cents.unwrap_or_default() };
            UsageBucket { start: start.into(), usage }
        });
        Ok(buckets.collect())
    }
}

/// The usage of a key from each start on for a `length`, between `from` and `to`.
///
/// Written by hand, because Diesel has no `LATERAL`. Grouping the calls of the whole range would sort
/// them, or hash them; like this each bucket is a range of the index, and an empty one costs a look.
/// The subselect hides how many starts there are, by which the server would plan each call anew. It
/// takes a list for ten rows and `generate_series` for a thousand, whose cost would have it compile
/// the query (JIT) at each call for a key of a million calls.
struct Series<'a> {
    tenant_id: &'a TenantId,
    key_id: &'a KeyId,
    from: Time,
    to: Time,
    starts: Vec<Time>,
    length: PgInterval,
}

impl QueryFragment<Pg> for Series<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"SELECT "start", "calls"."count", "calls"."sum" FROM unnest((SELECT "#);
        out.push_bind_param::<Array<Timestamptz>, _>(&self.starts)?;
        out.push_sql(r#")) AS "start" CROSS JOIN LATERAL (SELECT count(*), sum("cost_cents")"#);
        out.push_sql(r#" FROM "proxy_calls" WHERE "proxy_calls"."tenant_id" = "#);
        out.push_bind_param::<Text, _>(self.tenant_id)?;
        out.push_sql(r#" AND "proxy_calls"."api_key_id" = "#);
        out.push_bind_param::<Text, _>(self.key_id)?;
        out.push_sql(r#" AND "proxy_calls"."created_at" >= greatest("start", "#);
        out.push_bind_param::<Timestamptz, _>(&self.from)?;
        out.push_sql(r#") AND "proxy_calls"."created_at" < least("start" + "#);
        out.push_bind_param::<Interval, _>(&self.length)?;
        out.push_sql(", ");
        out.push_bind_param::<Timestamptz, _>(&self.to)?;
        out.push_sql(r#")) AS "calls" ORDER BY "start""#);
        Ok(())
    }
}

impl QueryId for Series<'_> {
    type QueryId = Series<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Query for Series<'_> {
    type SqlType = (Timestamptz, BigInt, Nullable<Numeric>);
}

impl RunQueryDsl<PgConnection> for Series<'_> {}
