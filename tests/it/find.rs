//! Finding keys by name, by user and by the first characters of the secret.

use api_keys_driver::{Error, KeyCursor, KeySnapshot, KeysDriver, Result};
use chrono::TimeDelta;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::every_method::{Method, read};
use crate::support::plans::Plans;
use crate::support::{KeyRow, OTHER, TENANT, at, ids, migrated, plans_of, statements_of, tenant};

/// Keys of two tenants, one minute apart, newest last: id, tenant, name, user, prefix.
const ROWS: [(&str, &str, &str, Option<&str>, &str); 9] = [
    ("a", TENANT, "Production", Some("ann"), "sk-live-ab12"),
    ("b", TENANT, "production", Some("ann"), "sk-live-ab13"),
    ("c", TENANT, "Production ", None, "sk-test-ab12"),
    ("d", OTHER, "Production", Some("ann"), "sk-live-ab12"),
    ("e", TENANT, "Production", Some("bob"), "sk_live%ab"),
    ("f", TENANT, "Prod%", Some("ann"), "sk-live-ab1"),
    ("g", TENANT, "", Some(""), ""),
    ("h", TENANT, "Production", Some("ANN"), "SK-LIVE-AB12"),
    ("i", TENANT, "Production", Some("ann"), "sk-live-ab12"),
];

fn with_keys_to_find() -> (throwaway_postgres::Database, PgConnection) {
    let (database, mut conn) = migrated();
    for (minutes, (id, tenant_id, name, user_id, key_prefix)) in (0..).zip(ROWS) {
        let created_at = at("2026-01-01T00:00:00Z") + TimeDelta::minutes(minutes);
        KeyRow { id, tenant_id, user_id, name, key_prefix, created_at, ..KeyRow::default() }
            .insert(&mut conn);
    }
    (database, conn)
}

/// Reads all pages of two keys.
fn walk(mut page: impl FnMut(Option<&KeyCursor>, u32) -> Result<Vec<KeySnapshot>>) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let keys = page(cursor.as_ref(), 2).unwrap();
        assert!(keys.len() <= 2);
        let Some(last) = keys.last() else { break };
        cursor = Some(KeyCursor::from(last));
        all.extend(ids(keys));
    }
    assert_eq!(ids(page(None, u32::MAX).unwrap()), all, "one page of all is what the pages are");
    assert!(page(None, 0).unwrap().is_empty());
    all
}

#[test]
fn keys_by_name_have_exactly_this_name_newest_first() {
    let (_database, mut conn) = with_keys_to_find();
    let mut named = |name: &str| {
        walk(|cursor, limit| KeysDriver::new(&mut conn).fetch_keys_by_name(&tenant(), name, cursor, limit))
    };
    assert_eq!(named("Production"), ["i", "h", "e", "a"]);
    assert_eq!(named("production"), ["b"]);
    assert_eq!(named("Production "), ["c"]);
    assert_eq!(named("Prod%"), ["f"]);
    assert_eq!(named(""), ["g"]);
    for nobody in ["Prod", "%", "Production  ", "x", "\0"] {
        assert!(named(nobody).is_empty(), "{nobody:?}");
    }
}

#[test]
fn keys_by_user_belong_to_the_tenant_newest_first() {
    let (_database, mut conn) = with_keys_to_find();
    let mut of = |user: &str| {
        walk(|cursor, limit| KeysDriver::new(&mut conn).fetch_keys_by_user(&tenant(), user, cursor, limit))
    };
    assert_eq!(of("ann"), ["i", "f", "b", "a"]);
    assert_eq!(of("ANN"), ["h"]);
    assert_eq!(of(""), ["g"]);
    assert!(of("an").is_empty());
}

#[test]
fn keys_by_prefix_have_a_stored_prefix_that_starts_with_it() {
    let (_database, mut conn) = with_keys_to_find();
    let mut with = |prefix: &str| {
        walk(|cursor, limit| {
            KeysDriver::new(&mut conn).fetch_keys_by_prefix(&tenant(), prefix, cursor, limit)
        })
    };
    assert_eq!(with("sk-live-ab12"), ["i", "a"]);
    assert_eq!(with("sk-live-ab1"), ["i", "f", "b", "a"]);
    assert_eq!(with("sk-live-"), ["i", "f", "b", "a"]);
    assert_eq!(with("sk"), ["i", "f", "e", "c", "b", "a"]);
    assert_eq!(with("sk_live%"), ["e"]);
    assert_eq!(with("SK"), ["h"]);
    assert_eq!(with(""), ["i", "h", "g", "f", "e", "c", "b", "a"]);
    for nobody in ["%", "_k", "sk-live-ab14", "k-live", "sk-live-ab1%", "\u{10ffff}", "\0"] {
        assert!(with(nobody).is_empty(), "{nobody:?}");
    }
}

#[test]
fn keys_of_any_tenant_are_found_by_a_prefix_each_with_its_tenant() {
    let (_database, mut conn) = with_keys_to_find();
    let mut keys = KeysDriver::new(&mut conn);
    let found = walk(|cursor, limit| keys.fetch_keys_of_any_tenant_by_prefix("sk-live-ab12", cursor, limit));
    assert_eq!(found, ["i", "d", "a"]);
    let all = keys.fetch_keys_of_any_tenant_by_prefix("sk-live-ab12", None, 10).unwrap();
    assert_eq!(all[1].tenant_id, OTHER.into());
    let mut one_by_one = Vec::new();
    for key in &all {
        one_by_one.push(keys.fetch_key_by_id(&key.tenant_id, &key.id).unwrap().unwrap());
    }
    assert_eq!(all, one_by_one);
}

#[test]
fn a_prefix_of_more_than_12_characters_is_refused_before_it_is_sent() {
    let (_database, mut conn) = with_keys_to_find();
    let secret = "sk-live-ab12c";
    let (refused, sent) = statements_of(&mut conn, |conn| {
        let mut keys = KeysDriver::new(conn);
        [
            keys.fetch_keys_by_prefix(&tenant(), secret, None, 9),
            keys.fetch_keys_of_any_tenant_by_prefix(secret, None, 9),
        ]
    });
    for refused in refused {
        assert!(matches!(refused, Err(Error::TooLong { column: "key_prefix", limit: 12 })), "{refused:?}");
    }
    assert!(sent.is_empty());
}

#[test]
fn keys_with_the_same_created_at_are_returned_once() {
    let (_database, mut conn) = migrated();
    for n in 0..7 {
        let id = format!("{n}");
        KeyRow { id: &id, user_id: Some("ann"), ..KeyRow::default() }.insert(&mut conn);
    }
    let newest_first = ["6", "5", "4", "3", "2", "1", "0"];
    let mut keys = KeysDriver::new(&mut conn);
    assert_eq!(
        walk(|cursor, limit| keys.fetch_keys_by_name(&tenant(), "Production", cursor, limit)),
        newest_first
    );
    assert_eq!(walk(|cursor, limit| keys.fetch_keys_by_user(&tenant(), "ann", cursor, limit)), newest_first);
    assert_eq!(walk(|cursor, limit| keys.fetch_keys_by_prefix(&tenant(), "sk", cursor, limit)), newest_first);
}

#[test]
fn any_prefix_finds_the_keys_that_start_with_it_in_any_collation() {
    let (database, mut conn) = migrated();
    let stored = [
        "",
        "a",
        "A",
        "ab",
        "aB",
        "á",
        "ab\u{10ffff}",
        "\u{10ffff}",
        "\u{d7ff}",
        "%",
        "_",
        "\\",
        "ß",
        "ss",
        "~",
        "\u{7f}",
    ];
    for prefix in stored {
        let id = format!("key of {prefix}");
        KeyRow { id: &id, key_prefix: prefix, ..KeyRow::default() }.insert(&mut conn);
    }
    for collation in ["default", "C", "en-x-icu", "de-u-ks-level2-x-icu"] {
        let set =
            format!("ALTER TABLE api_keys ALTER COLUMN key_prefix TYPE varchar(12) COLLATE \"{collation}\"");
        if conn.batch_execute(&set).is_err() {
            continue; // a server without ICU
        }
        let conn = database.connect().unwrap();
        let asked = stored.map(str::to_owned).into_iter().map(Just).collect::<Vec<_>>();
        let asked = prop_oneof![proptest::strategy::Union::new(asked), "[a-c%_\\\\]{0,3}", any::<String>()];
        let conn = std::cell::RefCell::new(conn);
        TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() })
            .run(&asked, |asked| {
                let asked: String = asked.chars().filter(|c| *c != '\0').take(12).collect();
                let conn = &mut *conn.borrow_mut();
                let found = KeysDriver::new(conn).fetch_keys_by_prefix(&tenant(), &asked, None, 99).unwrap();
                let mut found: Vec<String> = found.into_iter().map(|key| key.key_prefix).collect();
                let mut expected: Vec<&str> =
                    stored.into_iter().filter(|prefix| prefix.starts_with(&asked)).collect();
                found.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(found, expected);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn keys_by_name_and_by_user_are_read_in_the_order_of_their_indexes() {
    /// All keys have this name, so a page by name is a page of the tenant.
    const COMMON: Method = read("fetch_keys_by_name of a common name", |conn, with| {
        let (cursor, limit) = (Some(&with.cursor), with.page.limit);
        let keys = KeysDriver::new(conn).fetch_keys_by_name(&with.tenant_id, "Production", cursor, limit);
        keys.map(|keys| keys.len().to_string())
    });
    let by_name = "Index Scan using ix_api_keys_tenant_name_newest_first";
    plans_of("fetch_keys_by_name").read(&[by_name]);
    // If all keys of a tenant have the name, both indexes cost the same.
    Plans::of(&COMMON).or_read(&[by_name, "Index Scan using ix_api_keys_tenant_newest_first"]).read(&[]);
    plans_of("fetch_keys_by_user").read(&["Index Scan using ix_api_keys_tenant_user_newest_first"]);
}

#[test]
fn keys_by_prefix_are_chosen_in_an_index_and_then_fetched() {
    const RARE: Method = read("fetch_keys_by_prefix of a rare prefix", |conn, with| {
        let keys = KeysDriver::new(conn).fetch_keys_by_prefix(&with.tenant_id, "rare", None, with.page.limit);
        keys.map(|keys| keys.len().to_string())
    });
    // For a prefix that every key has, any scan is good; a rare prefix must be read from an index.
    const RARE_OF_ANY: Method = read("fetch_keys_of_any_tenant_by_prefix", |conn, with| {
        let keys = KeysDriver::new(conn).fetch_keys_of_any_tenant_by_prefix("rare", None, with.page.limit);
        keys.map(|keys| keys.len().to_string())
    });
    let found = "Sort Key: found.created_at DESC, found.id DESC";
    let sorts = [found, "Sort Key: api_keys_1.created_at DESC, api_keys_1.id DESC"];
    let scans = ["Index Only Scan using ix_api_keys_tenant_prefix", "Index Scan using api_keys_pkey"];
    plans_of("fetch_keys_by_prefix").sort_by(&sorts).read(&scans);
    plans_of("fetch_keys_by_prefix.cursor").read_in_vain().sort_by(&sorts).read(&scans);
    // If the statistics show that no tenant has such a key, either index is good.
    Plans::of(&RARE)
        .or_read(&["using ix_api_keys_tenant_prefix", "using ix_api_keys_prefix"])
        .sort_by(&sorts)
        .read(&scans[1..]);
    Plans::of(&RARE_OF_ANY)
        .planned_for_each_call()
        .or_read(&["Bitmap Heap Scan on api_keys", "Bitmap Index Scan on api_keys_pkey"])
        .sort_by(&[found, "Sort Key: api_keys.created_at DESC, api_keys.id DESC"])
        .read(&["Index Only Scan using ix_api_keys_prefix", "api_keys_pkey"]);
}
