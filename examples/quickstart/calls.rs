//! The calls that the example inserts: from a trace file, or generated.

use std::fs::File;
use std::path::Path;

use api_keys_driver::BigDecimal;
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use csv::StringRecord;
use throwaway_postgres::Result;

pub(crate) struct Call {
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) input_tokens: i32,
    pub(crate) output_tokens: i32,
}

impl Call {
    /// 0.00025 cents per input token and 0.001 cents per output token, rounded half-even to four decimals.
    pub(crate) fn cost_cents(&self) -> BigDecimal {
        let hundred_thousandths = 25 * i64::from(self.input_tokens) + 100 * i64::from(self.output_tokens);
        BigDecimal::new(hundred_thousandths.into(), 5).with_scale_round(4, bigdecimal::RoundingMode::HalfEven)
    }
}

const COLUMNS: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];

/// Reads a trace: a line with the names of the columns, then one line per call. Times are in UTC.
pub(crate) fn read(path: &Path) -> Result<Vec<Call>> {
    let file = File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let mut lines = csv::Reader::from_reader(file);
    let found = lines.headers().map_err(|error| unreadable(&error))?.clone();
    if found != COLUMNS[..] {
        let found = found.iter().collect::<Vec<_>>().join(",");
        let expected = COLUMNS.join(",");
        return Err(format!("the first line must be `{expected}` and is `{found}`").into());
    }
    let calls: Vec<Call> = lines
        .records()
        .map(|line| parse(&line.map_err(|error| unreadable(&error))?))
        .collect::<Result<_>>()?;
    if calls.is_empty() {
        return Err("no calls follow the first line: add some, or leave the file out".into());
    }
    Ok(calls)
}

fn parse(line: &StringRecord) -> Result<Call> {
    let tokens = |index: usize| {
        let count = line[index].parse().ok().filter(|tokens| *tokens >= 0);
        count.ok_or_else(|| misplaced(line, index, "a whole number from 0 to 2147483647"))
    };
    let time = NaiveDateTime::parse_from_str(&line[0], "%Y-%m-%d %H:%M:%S%.f");
    Ok(Call {
        created_at: time.map_err(|_| misplaced(line, 0, "a time such as 2023-11-16 18:17:03.97"))?.and_utc(),
        input_tokens: tokens(1)?,
        output_tokens: tokens(2)?,
    })
}

fn misplaced(line: &StringRecord, index: usize, expected: &str) -> String {
    let place = line.position().map_or(0, csv::Position::line);
    let (column, name, value) = (index + 1, COLUMNS[index], &line[index]);
    format!("line {place}, column {column} ({name}): `{value}` is not {expected}")
}

fn unreadable(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos: Some(position), len, .. } => {
            format!("line {}: it has {len} columns and must have {}", position.line(), COLUMNS.len())
        }
        csv::ErrorKind::Utf8 { pos: Some(position), .. } => {
            format!("line {}: it is not UTF-8 text", position.line())
        }
        _ => format!("cannot be read: {error}"),
    }
}

/// Two hundred calls over the days around the turn of a month.
pub(crate) fn invented() -> Vec<Call> {
    let first = DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(20_510);
    (0..200)
        .map(|index| Call {
            created_at: first + TimeDelta::minutes(37 * i64::from(index)),
            input_tokens: 100 + index * 61 % 4000,
            output_tokens: 5 + index * 17 % 300,
        })
        .collect()
}
