//! PostgreSQL's binary format, by hand: for libpq, and where a peer has no type for it.

use bigdecimal::BigDecimal;
use bigdecimal::num_bigint::BigInt;
use chrono::{DateTime, Utc};

const MICROS_1970_TO_2000: i64 = 946_684_800_000_000;

pub fn int8(bytes: &[u8]) -> i64 {
    i64::from_be_bytes(bytes.try_into().unwrap())
}

pub fn time(bytes: &[u8]) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(int8(bytes) + MICROS_1970_TO_2000).unwrap()
}

pub fn time_to_bytes(time: DateTime<Utc>) -> [u8; 8] {
    (time.timestamp_micros() - MICROS_1970_TO_2000).to_be_bytes()
}

/// An array of one dimension, without NULLs.
fn array_to_bytes<Element: AsRef<[u8]>>(
    oid: i32,
    elements: impl ExactSizeIterator<Item = Element>,
) -> Vec<u8> {
    let length = i32::try_from(elements.len()).unwrap();
    let mut bytes: Vec<u8> = [1, 0, oid, length, 1].into_iter().flat_map(i32::to_be_bytes).collect();
    for element in elements {
        bytes.extend(i32::try_from(element.as_ref().len()).unwrap().to_be_bytes());
        bytes.extend(element.as_ref());
    }
    bytes
}

pub fn times_to_bytes(times: impl ExactSizeIterator<Item = DateTime<Utc>>) -> Vec<u8> {
    const TIMESTAMPTZ: i32 = 1184;

    array_to_bytes(TIMESTAMPTZ, times.map(time_to_bytes))
}

pub fn int8s_to_bytes(numbers: impl ExactSizeIterator<Item = i64>) -> Vec<u8> {
    const INT8: i32 = 20;

    array_to_bytes(INT8, numbers.map(i64::to_be_bytes))
}

pub fn texts_to_bytes<'a>(texts: impl ExactSizeIterator<Item = &'a str>) -> Vec<u8> {
    const TEXT: i32 = 25;

    array_to_bytes(TEXT, texts)
}

pub fn text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).unwrap().to_owned()
}

/// Digits to the base 10,000, the place of the first, a sign and how many decimals are shown.
pub fn numeric(bytes: &[u8]) -> BigDecimal {
    let word = |index: usize| i16::from_be_bytes(bytes[2 * index..2 * index + 2].try_into().unwrap());
    let (digits, weight, negative, scale) = (word(0), word(1), word(2) == 0x4000, word(3));
    let mut number = 0_i128;
    for index in 0..digits {
        number = number * 10_000 + i128::from(word(4 + usize::try_from(index).unwrap()));
    }
    let sign = if negative { -1 } else { 1 };
    let decimals = 4 * (i64::from(digits) - i64::from(weight) - 1);
    BigDecimal::new(BigInt::from(sign * number), decimals).with_scale(scale.into())
}
