//! The calls that the example loads: read from a trace, or invented.

use std::fs;

use api_keys_driver::BigDecimal;
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use throwaway_postgres::{BoxError, Result};

pub(crate) struct Call {
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) input_tokens: i32,
    pub(crate) output_tokens: i32,
}

impl Call {
    /// 0.00025 cents an input token and 0.001 cents an output token, rounded half-even to four decimals.
    pub(crate) fn cost_cents(&self) -> BigDecimal {
        let hundred_thousandths = 25 * i64::from(self.input_tokens) + 100 * i64::from(self.output_tokens);
        BigDecimal::new(hundred_thousandths.into(), 5).with_scale_round(4, bigdecimal::RoundingMode::HalfEven)
    }
}

/// Reads a trace, a call a line: `TIMESTAMP,ContextTokens,GeneratedTokens`, the time in UTC.
pub(crate) fn read(path: &str) -> Result<Vec<Call>> {
    let text = fs::read_to_string(path)?;
    text.lines()
        .enumerate()
        .skip(1)
        .map(|(nth, line)| parse(line).map_err(|error| format!("line {}: {error}", nth + 1).into()))
        .collect()
}

fn parse(line: &str) -> Result<Call> {
    let [time, input, output] = line.split(',').collect::<Vec<_>>()[..] else {
        return Err(BoxError::from("three columns are expected"));
    };
    let time = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.f")?;
    Ok(Call { created_at: time.and_utc(), input_tokens: input.parse()?, output_tokens: output.parse()? })
}

/// Two hundred calls over the days around the turn of a month.
pub(crate) fn invented() -> Vec<Call> {
    let first = DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(20_510);
    (0..200)
        .map(|nth| Call {
            created_at: first + TimeDelta::minutes(37 * i64::from(nth)),
            input_tokens: 100 + nth * 61 % 4000,
            output_tokens: 5 + nth * 17 % 300,
        })
        .collect()
}
