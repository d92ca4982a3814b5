//! The ids of tenants and keys, as two types. The hash of a secret is in `keys_driver/key_hash.rs`.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::str::FromStr;

use derive_more::{AsRef, Display, From, Into};
use diesel_derive_newtype::DieselNewType;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(AsRef, Display, From, Into, DieselNewType)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
        #[as_ref(str)]
        #[from(String, &str)]
        pub struct $name(String);

        impl $name {
            /// Returns the stored text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Infallible;

            fn from_str(id: &str) -> Result<Self, Infallible> {
                Ok(id.into())
            }
        }
    };
}

text_id! {
    /// The id of a tenant. A tenant owns keys, and a statement of one tenant never reaches the rows of another.
    ///
    /// It is opaque text, usually a UUID, compared byte for byte. It is not checked: a tenant that does not exist has
    /// no keys. In Diesel it is a `Text` value, in serde a string.
    ///
    /// ```
    /// # use api_keys_driver::TenantId;
    /// let tenant_id = TenantId::from("0b9e6a54-13b5-4f6f-9d0e-2f6f0c6f8a11");
    /// assert_eq!(tenant_id.as_str(), tenant_id.to_string());
    /// ```
    TenantId
}

text_id! {
    /// The id of a key.
    ///
    /// It is opaque text, usually a UUID, compared byte for byte. In Diesel it is a `Text` value, in serde a string.
    ///
    /// The ids of a tenant and of a key are two types, so that a swapped pair does not compile:
    ///
    /// ```
    /// # use api_keys_driver::{KeyId, KeySnapshot, KeysDriver, Result, TenantId};
    /// # fn fetch(mut keys: KeysDriver<'_>, tenant_id: &TenantId, key_id: &KeyId) -> Result<Option<KeySnapshot>> {
    /// keys.fetch_key_by_id(tenant_id, key_id)
    /// # }
    /// ```
    ///
    /// ```compile_fail,E0308
    /// # use api_keys_driver::{KeyId, KeySnapshot, KeysDriver, Result, TenantId};
    /// # fn fetch(mut keys: KeysDriver<'_>, tenant_id: &TenantId, key_id: &KeyId) -> Result<Option<KeySnapshot>> {
    /// keys.fetch_key_by_id(key_id, tenant_id)
    /// # }
    /// ```
    KeyId
}
