//! The hash of a secret. It has its own type, so that no other text can take its place and `Debug` does not show it.

use std::fmt;

use derive_more::From;
use diesel_derive_newtype::DieselNewType;

/// The hash of a key's secret, which the database stores instead of the secret.
///
/// The crate writes it and looks it up, but never returns it. It is opaque text, compared byte for byte. `Debug`
/// does not show it:
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
