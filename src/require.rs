//! Checks that a value fits its column, before a statement is sent. Errors of the server about new keys are in
//! `keys_driver/refusal.rs`.

use bigdecimal::BigDecimal;

use crate::{Error, Result};

/// Requires that the text has at most `limit` characters and no NUL byte. PostgreSQL would cut off spaces at the end
/// without an error.
pub(crate) fn fits(column: &'static str, limit: usize, text: &str) -> Result<()> {
    is_at_most(column, limit, text)?;
    is_text(column, text)
}

pub(crate) fn is_at_most(column: &'static str, limit: usize, text: &str) -> Result<()> {
    if text.chars().count() > limit { Err(Error::TooLong { column, limit }) } else { Ok(()) }
}

pub(crate) fn fits_if_any(column: &'static str, limit: usize, text: Option<&str>) -> Result<()> {
    text.map_or(Ok(()), |text| fits(column, limit, text))
}

/// Requires that the text has no NUL byte, which PostgreSQL cannot store.
pub(crate) fn is_text(column: &'static str, text: &str) -> Result<()> {
    if text.contains('\0') { Err(Error::NulByte { column }) } else { Ok(()) }
}

pub(crate) fn is_text_if_any(column: &'static str, text: Option<&str>) -> Result<()> {
    text.map_or(Ok(()), |text| is_text(column, text))
}

pub(crate) fn is_not_negative(column: &'static str, limit: Option<i32>) -> Result<()> {
    if limit.is_some_and(i32::is_negative) { Err(Error::Negative { column }) } else { Ok(()) }
}

/// Requires that a `numeric(10,4)` holds all digits of the amount. PostgreSQL would round the amount without an error.
pub(crate) fn is_exact_cost(column: &'static str, cost: Option<&BigDecimal>) -> Result<()> {
    let is_exact = |cost: &BigDecimal| {
        let (digits, scale) = (cost.normalized().digits(), cost.normalized().fractional_digit_count());
        scale <= 4 && i64::try_from(digits).is_ok_and(|digits| digits - scale <= 6)
    };
    if cost.is_none_or(is_exact) { Ok(()) } else { Err(Error::TooManyDigits { column }) }
}

#[cfg(test)]
mod tests {
    use bigdecimal::BigDecimal;

    use super::is_exact_cost;

    #[test]
    fn a_cost_is_exact_when_numeric_10_4_holds_all_its_digits() {
        let is_exact =
            |text: &str| is_exact_cost("cost_cents", Some(&text.parse::<BigDecimal>().unwrap())).is_ok();
        for text in
            ["0", "-0", "0.0001", "-999999.9999", "999999.99990000", "1e5", "1000e-7", "0e99", "0e-99"]
        {
            assert!(is_exact(text), "{text}");
        }
        for text in
            ["0.00001", "1000000", "-1000000", "999999.99995", "1e6", "1e-5", "1e300000000", "1e-300000000"]
        {
            assert!(!is_exact(text), "{text}");
        }
        assert!(is_exact_cost("cost_cents", None).is_ok());
    }
}
