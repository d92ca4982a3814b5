//! Reads the configuration of a pool from a map of settings, with serde. An error does not quote a connection string that
//! is in the place of the map.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::PoolConfig;

struct Settings;

impl<'de> Visitor<'de> for Settings {
    type Value = PoolConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, settings: A) -> Result<PoolConfig, A::Error> {
        PoolConfig::deserialize(MapAccessDeserializer::new(settings))
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<PoolConfig, E> {
        Err(E::custom("a text is not a map of settings: put a connection string into `database_url`"))
    }
}

impl<'de> Deserialize<'de> for PoolConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // `deserialize_map` would not ask the visitor about a text, and quote it.
        deserializer.deserialize_any(Settings)
    }
}
