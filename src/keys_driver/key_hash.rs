//! The hash of a secret as a type, so that it is taken for no other text and shown nowhere.

use std::fmt;

use derive_more::From;
use diesel_derive_newtype::DieselNewType;

/// What is stored of a key's secret. It is written and looked up, and never shown.
///
/// ```
/// # use api_keys_driver::KeyHash;
/// assert_eq!(format!("{:?}", KeyHash::from("9f86d081884c7d65")), "KeyHash(..)");
/// ```
#[derive(Clone, PartialEq, Eq, From, DieselNewType)]
#[from(String, &str)]
pub struct KeyHash(String);

impl KeyHash {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(..)")
    }
}
