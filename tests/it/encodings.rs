//! Databases whose encoding is not UTF-8, and texts that no database can hold.

use api_keys_driver::{Advice, Error, KeysDriver, NewKey, Page, TryLock};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::PrivateServer;

use crate::every_method::{Input, METHODS};
use crate::support::{CallRow, KeyRow, at, key, migrated, tenant};

/// A connection to a migrated database with an encoding. The server runs until the first value is dropped.
fn database_with(encoding: &str) -> (PrivateServer, PgConnection) {
    let server = PrivateServer::start_new().unwrap();
    let folder = server.socket_folder().display().to_string();
    let url = |name: &str| format!("host={folder} user=postgres dbname={name}");
    let plain = server.create_database().unwrap();
    plain
        .connect()
        .unwrap()
        .batch_execute(&format!(
            "CREATE DATABASE odd TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
        ))
        .unwrap();
    let mut conn = PgConnection::establish(&url("odd")).unwrap();
    api_keys_driver::migrate(&mut conn).unwrap();
    (server, conn)
}

/// Checks that reads by a text that the database cannot hold find nothing, and that writes of it return their own
/// error.
fn assert_not_there(conn: &mut PgConnection, text: &str) {
    let (tenant_id, key_id) = (tenant(), key(text));
    let mut keys = KeysDriver::new(conn);
    assert_eq!(keys.fetch_key_by_id(&tenant_id, &key_id).unwrap(), None);
    assert_eq!(keys.fetch_key_by_hash(&text.into()).unwrap(), None);
    assert_eq!(keys.fetch_keys(&text.into(), Page::default()).unwrap(), []);
    assert_eq!(keys.count_keys(&text.into()).unwrap(), 0);
    let usage = keys.fetch_key_usage(&tenant_id, &key_id, at("2026-01-01T00:00:00Z")).unwrap();
    assert_eq!(usage.request_count, 0);
    let new = NewKey::new(tenant(), key_id.clone(), "", "", "hash".into(), at("2026-01-01T00:00:00Z"));
    let refused = keys.insert_key(&new);
    assert!(matches!(refused, Err(Error::UnencodableText(_) | Error::NulByte { .. })), "{refused:?}");
    let locked = conn.transaction(|conn| {
        let locked = KeysDriver::new(conn).try_fetch_key_for_update(&tenant_id, &key_id)?;
        assert!(matches!(locked, TryLock::NotFound), "{locked:?}");
        Err::<(), Error>(diesel::result::Error::RollbackTransaction.into())
    });
    assert!(locked.is_err());
}

#[test]
fn a_text_with_a_nul_byte_is_never_found() {
    let (_database, mut conn) = migrated();
    KeyRow::default().insert(&mut conn);
    assert_not_there(&mut conn, "key\0");
    assert_not_there(&mut conn, "\0");
}

#[test]
fn a_text_that_the_encoding_cannot_hold_is_never_found() {
    let (_server, mut conn) = database_with("LATIN1");
    KeyRow { id: "clé", name: "Schlüssel", ..KeyRow::default() }.insert(&mut conn);
    for text in ["ключ", "🔑", "clé\u{301}"] {
        assert_not_there(&mut conn, text);
    }
    let found = KeysDriver::new(&mut conn).fetch_key_by_id(&tenant(), &key("clé")).unwrap().unwrap();
    assert_eq!(found.name, "Schlüssel");
}

#[test]
fn every_method_answers_on_a_database_of_another_encoding() {
    for encoding in ["LATIN1", "WIN1252", "SQL_ASCII"] {
        let (_server, mut conn) = database_with(encoding);
        KeyRow { name: "Schlüssel", ..KeyRow::default() }.insert(&mut conn);
        CallRow::default().insert(&mut conn);
        for method in METHODS {
            let answer = conn.transaction(|conn| (method.call)(conn, &Input::default()));
            assert!(answer.is_ok(), "{encoding}: {} {answer:?}", method.name);
        }
    }
}

#[test]
fn bytes_that_utf8_has_no_character_for_are_an_error_that_shows_them() {
    for (encoding, bytes, shown) in [("SQL_ASCII", "ff41", "0xff"), ("WIN1252", "8141", "0x81")] {
        let (_server, mut conn) = database_with(encoding);
        KeyRow::default().insert(&mut conn);
        let spoil = format!(
            "SET client_encoding = '{encoding}';
             UPDATE api_keys SET name = convert_from('\\x{bytes}'::bytea, '{encoding}');
             SET client_encoding = 'UTF8'"
        );
        conn.batch_execute(&spoil).unwrap();
        let failed = KeysDriver::new(&mut conn).fetch_keys(&tenant(), Page::default()).unwrap_err();
        let why = std::error::Error::source(&failed).unwrap().to_string();
        assert!(matches!(failed, Error::InvalidText(_)) && why.contains(shown), "{failed:?}");
        assert_eq!(failed.advice(), Advice::Fail);
    }
}
