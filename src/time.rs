//! Converts times between Rust and PostgreSQL, whose ranges differ. Every time in a statement or a row uses this file.
//! A time outside the other range becomes the end of that range, and is not an error.

use std::fmt;

use chrono::{DateTime, Utc};
use diesel::data_types::PgTimestamp;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::{Nullable, Timestamptz};

/// The time from the Unix epoch to PostgreSQL's epoch (2000-01-01), in microseconds.
const SINCE_1970: i64 = 946_684_800_000_000;
/// PostgreSQL's first time, 4714-11-24 BC, in microseconds since its epoch. Its last time is later than chrono's.
const FIRST: i64 = -211_813_488_000_000_000;
/// PostgreSQL's values for `infinity` and `-infinity`.
const INFINITY: i64 = i64::MAX;
const MINUS_INFINITY: i64 = i64::MIN;

/// A time in a statement or a row.
///
/// PostgreSQL's `infinity`, and a time after chrono's range, is read as [`DateTime::MAX_UTC`]; `-infinity` is read as
/// [`DateTime::MIN_UTC`]. These two are sent as `infinity` and `-infinity`. A time before PostgreSQL's range is sent as
/// `-infinity`. A leap second is sent as the next second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, AsExpression, FromSqlRow)]
#[diesel(sql_type = Timestamptz)]
pub struct Time(DateTime<Utc>);

impl Time {
    /// Whether several times of the server are read as this time.
    pub(crate) fn is_saturated(self) -> bool {
        PgTimestamp::from(self).0 == INFINITY
    }
}

/// Shows only the time, for Diesel's instrumentation and logs.
impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<DateTime<Utc>> for Time {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time)
    }
}

impl From<Time> for DateTime<Utc> {
    fn from(Time(time): Time) -> Self {
        time
    }
}

impl From<Time> for PgTimestamp {
    fn from(Time(time): Time) -> Self {
        let micros = time.timestamp_micros();
        if micros >= DateTime::<Utc>::MAX_UTC.timestamp_micros() {
            return Self(INFINITY);
        }
        let micros = micros - SINCE_1970;
        Self(if micros < FIRST { MINUS_INFINITY } else { micros })
    }
}

impl From<PgTimestamp> for Time {
    fn from(PgTimestamp(micros): PgTimestamp) -> Self {
        if micros == MINUS_INFINITY {
            return Self(DateTime::<Utc>::MIN_UTC);
        }
        let time = micros.checked_add(SINCE_1970).and_then(DateTime::from_timestamp_micros);
        Self(time.unwrap_or(DateTime::<Utc>::MAX_UTC))
    }
}

impl ToSql<Timestamptz, Pg> for Time {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        ToSql::<Timestamptz, Pg>::to_sql(&PgTimestamp::from(*self), &mut out.reborrow())
    }
}

impl FromSql<Timestamptz, Pg> for Time {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        <PgTimestamp as FromSql<Timestamptz, Pg>>::from_sql(value).map(Self::from)
    }
}

/// A time in a row that may be `NULL`.
#[derive(Clone, Copy, Debug, FromSqlRow)]
pub struct MaybeTime(Option<Time>);

impl From<MaybeTime> for Option<DateTime<Utc>> {
    fn from(MaybeTime(time): MaybeTime) -> Self {
        time.map(DateTime::from)
    }
}

impl FromSql<Nullable<Timestamptz>, Pg> for MaybeTime {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        FromSql::<Timestamptz, Pg>::from_sql(value).map(|time| Self(Some(time)))
    }

    fn from_nullable_sql(value: Option<PgValue<'_>>) -> deserialize::Result<Self> {
        value.map_or(Ok(Self(None)), FromSql::<Nullable<Timestamptz>, Pg>::from_sql)
    }
}

/// Cuts a time off to whole microseconds. A leap second becomes the next second.
pub(crate) fn whole_micros(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Timelike, Utc};
    use diesel::data_types::PgTimestamp;

    use super::{FIRST, Time, whole_micros};

    fn sent(time: DateTime<Utc>) -> i64 {
        PgTimestamp::from(Time(time)).0
    }

    fn read(micros: i64) -> DateTime<Utc> {
        Time::from(PgTimestamp(micros)).0
    }

    #[test]
    fn the_ends_of_chronos_range_are_infinite_and_are_read_back_unchanged() {
        let (min, max) = (DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC);
        assert_eq!((sent(min), sent(max)), (i64::MIN, i64::MAX));
        assert_eq!((read(i64::MIN), read(i64::MAX)), (min, max));
        assert_eq!(sent(whole_micros(max)), i64::MAX);
    }

    #[test]
    fn a_time_outside_the_other_range_becomes_the_end_of_that_range() {
        let last_of_postgresql = 9_223_371_331_199_999_999;
        assert_eq!(read(last_of_postgresql), DateTime::<Utc>::MAX_UTC);
        let first = read(FIRST);
        assert_eq!(sent(first), FIRST);
        assert_eq!(sent(first - TimeDelta::microseconds(1)), i64::MIN);
        assert_eq!(read(FIRST), "-4713-11-24T00:00:00Z".parse::<DateTime<Utc>>().unwrap());
    }

    #[test]
    fn debug_output_shows_the_time() {
        let time: DateTime<Utc> = "2026-01-01T12:34:59.25Z".parse().unwrap();
        assert_eq!(format!("{:?}", Time::from(time)), "2026-01-01T12:34:59.250Z");
        assert_eq!(DateTime::<Utc>::from(Time::from(time)), time);
    }

    #[test]
    fn a_leap_second_becomes_the_next_second() {
        let time: DateTime<Utc> = "2026-01-01T12:34:59.25Z".parse().unwrap();
        let leap = time.with_nanosecond(1_250_000_000).unwrap();
        let next: DateTime<Utc> = "2026-01-01T12:35:00.25Z".parse().unwrap();
        assert_eq!(whole_micros(leap), next);
        assert_eq!(sent(leap), sent(next));
    }
}
