//! What libpq makes of a connection string and the settings that the pool adds.

use std::fmt::Write;

use api_keys_driver::PoolConfig;
use diesel::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use throwaway_postgres::PrivateServer;

use super::{current_setting, setting};

#[test]
fn options_of_the_connection_string_are_kept_in_both_forms() {
    let server = PrivateServer::start_new().unwrap();
    let host = server.socket_folder().display();
    for (string, expected) in [
        (format!("postgresql:///postgres?host={host}&user=postgres"), "it's \\ here"),
        (format!("postgresql:///postgres?host={host}&user=postgres&application_name=mine"), "mine"),
        (format!("host={host} user=postgres"), "it's \\ here"),
        (format!("host={host} user=postgres application_name='mine'"), "mine"),
    ] {
        let pool = PoolConfig::new(string).application_name("it's \\ here").build().unwrap();
        assert_eq!(setting(&pool, "application_name"), expected);
    }
}

#[test]
fn settings_apply_also_if_the_password_has_special_characters() {
    let server = PrivateServer::start_new().unwrap();
    let host = server.socket_folder().display();
    for string in [
        format!("postgresql://worker:a?b%2F%40%25c@/postgres?host={host}&user=postgres"),
        format!("host={host} user=postgres password='a b\\'c\\\\d'"),
        format!("host={host} user=postgres password=postgres://a:b@c/d?e=f"),
        format!("password='postgresql://' host={host} user=postgres"),
        format!("postgresql:///postgres?host={host}&user=postgres&password=a%26b"),
    ] {
        let pool = PoolConfig::new(&string).build().unwrap_or_else(|error| panic!("{string}: {error:?}"));
        assert_eq!(setting(&pool, "lock_timeout"), "5s");
    }
}

/// A text as a value of libpq's key-value pairs.
fn as_value(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A text as a part of a URL. Characters are percent-encoded, except those in `raw`.
fn in_url(text: &str, raw: &str) -> String {
    let mut encoded = String::new();
    for character in text.chars() {
        if character.is_ascii_alphanumeric() || raw.contains(character) {
            encoded.push(character);
        } else {
            character.to_string().bytes().for_each(|byte| write!(encoded, "%{byte:02X}").unwrap());
        }
    }
    encoded
}

#[test]
fn libpq_reads_the_settings_whatever_the_connection_string_contains() {
    let server = PrivateServer::start_new().unwrap();
    let folder = server.socket_folder().display().to_string();
    let texts = ("[^\\x00]{0,12}", "[^\\x00]{1,12}", "[!$&'()*+,;=?:#]{0,4}");
    TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() })
        .run(&texts, |(password, name, raw)| {
            let urls = ["postgresql", "postgres"].map(|scheme| {
                let (password, name) = (in_url(&password, &raw), in_url(&name, "!$'()*+,;:?"));
                let address = format!("{scheme}://postgres:{password}@/postgres");
                format!("{address}?application_name={name}&host={folder}")
            });
            let (password, name) = (as_value(&password), as_value(&name));
            let pairs = format!("password={password} host={folder} application_name={name} user=postgres");
            for string in [&urls[0], &urls[1], &pairs] {
                let as_it_is =
                    PgConnection::establish(string).unwrap_or_else(|error| panic!("{string}: {error}"));
                let pool =
                    PoolConfig::new(string.as_str()).size(1).application_name("not this").build().unwrap();
                let named = |mut conn: PgConnection| -> String {
                    diesel::select(current_setting("application_name")).get_result(&mut conn).unwrap()
                };
                assert_eq!(setting(&pool, "application_name"), named(as_it_is), "{string}");
                assert_eq!(setting(&pool, "lock_timeout"), "5s", "{string}");
            }
            Ok(())
        })
        .unwrap();
}
