//! Every public method of both drivers, for tests that apply to all of them.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU32, Ordering};

use api_keys_driver::{
    ApiKeysFacadeDriver, Bucket, Change, Freeze, KeyChanges, KeyCursor, KeyHash, KeyId, KeyStatus,
    KeySuccessor, KeyUse, KeysDriver, LockedKey, NewCall, NewKey, Page, Result, TenantId,
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;

use crate::hostile::FOREIGN;
use crate::support::{at, key, tenant};

/// The arguments of a call. Each method takes those that it needs.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) tenant_id: TenantId,
    pub(crate) key_id: KeyId,
    pub(crate) status: KeyStatus,
    pub(crate) page: Page,
    pub(crate) cursor: KeyCursor,
    pub(crate) time: DateTime<Utc>,
    pub(crate) text: String,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            tenant_id: tenant(),
            key_id: key("key"),
            status: KeyStatus::Active,
            page: Page::default(),
            cursor: "00065000000000006b6579".parse().expect("a cursor after all rows"),
            time: at("2026-01-01T00:00:00Z"),
            text: "text".into(),
        }
    }
}

impl Input {
    /// The text of the input. Without one, `known`, which exists.
    fn text_or<'a>(&'a self, known: &'a str) -> &'a str {
        if self.text == Self::default().text { known } else { &self.text }
    }
}

/// A method, to be called inside a transaction. It returns the `Debug` text of the answer.
pub(crate) struct Method {
    /// The method's name. If the method has several statements, a dot and the name of the statement follow.
    pub(crate) name: &'static str,
    pub(crate) call: fn(&mut PgConnection, &Input) -> Result<String>,
    /// Whether the call first locks the key, with a separate statement.
    pub(crate) locks_first: bool,
}

#[expect(clippy::redundant_closure_for_method_calls, reason = "the path is not general over the borrow")]
pub(crate) const METHODS: &[Method] = &[
    read("fetch_keys", |conn, with| debug(KeysDriver::new(conn).fetch_keys(&with.tenant_id, with.page))),
    read("fetch_keys.offset", |conn, with| {
        debug(KeysDriver::new(conn).fetch_keys(&with.tenant_id, Page { offset: 1, ..with.page }))
    }),
    read("fetch_keys_after", |conn, with| {
        debug(KeysDriver::new(conn).fetch_keys_after(&with.tenant_id, Some(&with.cursor), with.page.limit))
    }),
    read("fetch_keys_after.unknown_time", |conn, with| {
        let cursor = KeyCursor::after(DateTime::<Utc>::MAX_UTC, &with.key_id);
        debug(KeysDriver::new(conn).fetch_keys_after(&with.tenant_id, Some(&cursor), with.page.limit))
    }),
    read("fetch_keys_with_usage", |conn, with| {
        debug(KeysDriver::new(conn).fetch_keys_with_usage(&with.tenant_id, with.time, with.page))
    }),
    read("fetch_keys_with_usage.offset", |conn, with| {
        let page = Page { offset: 1, ..with.page };
        debug(KeysDriver::new(conn).fetch_keys_with_usage(&with.tenant_id, with.time, page))
    }),
    read("count_keys", |conn, with| debug(KeysDriver::new(conn).count_keys(&with.tenant_id))),
    read("count_keys_up_to", |conn, with| {
        debug(KeysDriver::new(conn).count_keys_up_to(&with.tenant_id, with.page.limit))
    }),
    read("fetch_key_by_id", |conn, with| {
        debug(KeysDriver::new(conn).fetch_key_by_id(&with.tenant_id, &with.key_id))
    }),
    read("fetch_key_usage", |conn, with| {
        debug(KeysDriver::new(conn).fetch_key_usage(&with.tenant_id, &with.key_id, with.time))
    }),
    read("fetch_key_usage_series", |conn, with| {
        let range = with.time..later(with.time, TimeDelta::days(7));
        debug(KeysDriver::new(conn).fetch_key_usage_series(&with.tenant_id, &with.key_id, range, Bucket::Day))
    }),
    read("fetch_key_usage_between", |conn, with| {
        let boundaries = [0, 20, 60 * 24 * 40].map(|minutes| later(with.time, TimeDelta::minutes(minutes)));
        debug(KeysDriver::new(conn).fetch_key_usage_between(&with.tenant_id, &with.key_id, &boundaries))
    }),
    read("fetch_tenant_usage", |conn, with| {
        debug(KeysDriver::new(conn).fetch_tenant_usage(&with.tenant_id, with.time))
    }),
    read("fetch_tenant_usage_by_key", |conn, with| {
        let range = with.time..later(with.time, TimeDelta::days(40));
        debug(KeysDriver::new(conn).fetch_tenant_usage_by_key(&with.tenant_id, range, with.page.limit))
    }),
    read("roll_up_usage", |conn, with| {
        debug(KeysDriver::new(conn).roll_up_usage(with.time, with.page.limit))
    }),
    read("recount_usage", |conn, with| debug(KeysDriver::new(conn).recount_usage(with.time))),
    read("fetch_usage_drift", |conn, with| {
        let range = with.time..DateTime::<Utc>::MAX_UTC;
        debug(KeysDriver::new(conn).fetch_usage_drift(range, with.page.limit))
    }),
    read("delete_calls_before", |conn, with| {
        debug(KeysDriver::new(conn).delete_calls_before(with.time, with.page.limit))
    }),
    read("retire_calls_before", |conn, with| debug(KeysDriver::new(conn).retire_calls_before(with.time))),
    read("fetch_key_for_update", |conn, with| {
        debug(KeysDriver::new(conn).fetch_key_for_update(&with.tenant_id, &with.key_id))
    }),
    read("try_fetch_key_for_update", |conn, with| {
        debug(KeysDriver::new(conn).try_fetch_key_for_update(&with.tenant_id, &with.key_id))
    }),
    read("lock_tenant", |conn, with| {
        let _locked = KeysDriver::new(conn).lock_tenant(&with.tenant_id)?;
        Ok("[]".into())
    }),
    change("update_key_frozen", |conn, with| {
        on_locked(conn, with, |keys, key| keys.update_key_frozen(key, with.time))
    }),
    change("update_key_unfrozen", |conn, with| {
        on_locked(conn, with, |keys, key| keys.update_key_unfrozen(key))
    }),
    read("insert_key", |conn, with| {
        let (tenant_id, id) = (with.tenant_id.clone(), KeyId::from(unused()));
        let key = NewKey::new(tenant_id, id, &with.text, "sk-live-abcd", unused().into(), with.time);
        debug(KeysDriver::new(conn).insert_key(&key))
    }),
    read("fetch_key_by_hash", |conn, with| {
        debug(KeysDriver::new(conn).fetch_key_by_hash(&KeyHash::from(with.key_id.as_str())))
    }),
    read("fetch_keys_by_name", |conn, with| {
        let (name, cursor, limit) = (with.text_or(FOREIGN), Some(&with.cursor), with.page.limit);
        debug(KeysDriver::new(conn).fetch_keys_by_name(&with.tenant_id, name, cursor, limit))
    }),
    read("fetch_keys_by_user", |conn, with| {
        let (user, cursor, limit) = (with.text_or("user"), Some(&with.cursor), with.page.limit);
        debug(KeysDriver::new(conn).fetch_keys_by_user(&with.tenant_id, user, cursor, limit))
    }),
    read("fetch_keys_by_prefix", |conn, with| {
        let (prefix, limit) = (with.text_or("sk-live"), with.page.limit);
        debug(KeysDriver::new(conn).fetch_keys_by_prefix(&with.tenant_id, prefix, None, limit))
    }),
    read("fetch_keys_by_prefix.cursor", |conn, with| {
        let (prefix, cursor, limit) = (with.text_or("sk-live"), Some(&with.cursor), with.page.limit);
        debug(KeysDriver::new(conn).fetch_keys_by_prefix(&with.tenant_id, prefix, cursor, limit))
    }),
    read("fetch_keys_of_any_tenant_by_prefix", |conn, with| {
        let (prefix, limit) = (with.text_or("sk-live"), with.page.limit);
        debug(KeysDriver::new(conn).fetch_keys_of_any_tenant_by_prefix(prefix, None, limit))
    }),
    read("fetch_keys_of_any_tenant_by_prefix.cursor", |conn, with| {
        let (prefix, cursor, limit) = (with.text_or("sk-live"), Some(&with.cursor), with.page.limit);
        debug(KeysDriver::new(conn).fetch_keys_of_any_tenant_by_prefix(prefix, cursor, limit))
    }),
    change("delete_key", |conn, with| on_locked(conn, with, |keys, key| keys.delete_key(key))),
    read("delete_keys", |conn, with| {
        debug(KeysDriver::new(conn).delete_keys(&with.tenant_id, with.page.limit))
    }),
    read("insert_keys", |conn, with| {
        let key = NewKey {
            permissions_json: Some(with.text.clone()),
            ..NewKey::new(
                with.tenant_id.clone(),
                unused().into(),
                &with.text,
                "sk",
                unused().into(),
                with.time,
            )
        };
        debug(KeysDriver::new(conn).insert_keys(&[key]))
    }),
    read("insert_calls", |conn, with| {
        let call = NewCall {
            user_id: Some(with.text.clone()),
            ..NewCall::new(with.tenant_id.clone(), unused(), with.key_id.clone(), with.time)
        };
        debug(KeysDriver::new(conn).insert_calls(&[call]))
    }),
    change("update_key", |conn, with| {
        let changes = KeyChanges {
            name: Change::Set(&with.text),
            permissions_json: Change::Set(Some(&with.text)),
            allowed_workers_json: Change::Set(None),
            rate_limit_rpm: Change::Set(Some(60)),
            expires_at: Change::Set(Some(with.time)),
            ..KeyChanges::default()
        };
        on_locked(conn, with, |keys, key| keys.update_key(key, &changes))
    }),
    read("fetch_key_auth_by_id", |conn, with| {
        debug(KeysDriver::new(conn).fetch_key_auth_by_id(&with.tenant_id, &with.key_id))
    }),
    change("insert_key_successor", |conn, with| {
        let new = KeySuccessor::new(unused().into(), "sk-live-abcd", unused().into(), with.time);
        on_locked(conn, with, |keys, key| keys.insert_key_successor(&key, &new))
    }),
    read("record_key_uses", |conn, with| {
        let (tenant_id, key_id) = (with.tenant_id.clone(), with.key_id.clone());
        debug(KeysDriver::new(conn).record_key_uses(&[KeyUse { tenant_id, key_id, count: 1, at: with.time }]))
    }),
    read("try_record_key_uses", |conn, with| {
        let (tenant_id, key_id) = (with.tenant_id.clone(), with.key_id.clone());
        debug(KeysDriver::new(conn).try_record_key_uses(&[KeyUse {
            tenant_id,
            key_id,
            count: 1,
            at: with.time,
        }]))
    }),
    read("try_record_key_uses.two_tenants", |conn, with| {
        let of = |tenant_id| KeyUse { tenant_id, key_id: with.key_id.clone(), count: 1, at: with.time };
        debug(KeysDriver::new(conn).try_record_key_uses(&[of(with.tenant_id.clone()), of("nobody".into())]))
    }),
    read("record_key_uses.two_tenants", |conn, with| {
        let of = |tenant_id| KeyUse { tenant_id, key_id: with.key_id.clone(), count: 1, at: with.time };
        debug(KeysDriver::new(conn).record_key_uses(&[of(with.tenant_id.clone()), of("nobody".into())]))
    }),
    change("update_key_frozen_by", |conn, with| {
        let freeze = Freeze { at: with.time, by: &with.text, reason: Some(&with.text) };
        on_locked(conn, with, |keys, key| keys.update_key_frozen_by(key, &freeze))
    }),
    read("fetch_key_freeze", |conn, with| {
        debug(KeysDriver::new(conn).fetch_key_freeze(&with.tenant_id, &with.key_id))
    }),
    change("update_key_revoked", |conn, with| {
        on_locked(conn, with, |keys, key| keys.update_key_revoked(key, with.time, Some(&with.text)))
    }),
    read("update_all_keys_revoked", |conn, with| {
        debug(KeysDriver::new(conn).update_all_keys_revoked(&with.tenant_id, with.time, Some(&with.text)))
    }),
    change("update_key_expires_at", |conn, with| {
        on_locked(conn, with, |keys, key| keys.update_key_expires_at(key, Some(with.time)))
    }),
    read("fetch_keys_expiring", |conn, with| {
        debug(KeysDriver::new(conn).fetch_keys_expiring(&with.tenant_id, with.time, None, with.page.limit))
    }),
    read("fetch_keys_expiring.cursor", |conn, with| {
        let (cursor, limit) = ("e0000000000000000".parse().expect("a cursor of 1970"), with.page.limit);
        debug(KeysDriver::new(conn).fetch_keys_expiring(&with.tenant_id, with.time, Some(&cursor), limit))
    }),
    read("fetch_keys_unused", |conn, with| {
        debug(KeysDriver::new(conn).fetch_keys_unused(&with.tenant_id, with.time, None, with.page.limit))
    }),
    read("fetch_keys_unused.cursor", |conn, with| {
        let (cursor, limit) = ("u0000000000000000".parse().expect("a cursor of 1970"), with.page.limit);
        debug(KeysDriver::new(conn).fetch_keys_unused(&with.tenant_id, with.time, Some(&cursor), limit))
    }),
    read("count_keys_by_status", |conn, with| {
        debug(KeysDriver::new(conn).count_keys_by_status(&with.tenant_id))
    }),
    read("fetch_key_events", |conn, with| {
        debug(KeysDriver::new(conn).fetch_key_events(&with.tenant_id, &with.key_id, with.page))
    }),
    read("fetch_key_events_after", |conn, with| {
        debug(KeysDriver::new(conn).fetch_key_events_after(None, with.page.limit))
    }),
    read("fetch_key_history_after", |conn, with| {
        debug(KeysDriver::new(conn).fetch_key_history_after(
            &with.tenant_id,
            &with.key_id,
            None,
            with.page.limit,
        ))
    }),
    read("fetch_key_events_head", |conn, _| debug(KeysDriver::new(conn).fetch_key_events_head())),
    read("compact_key_events", |conn, with| {
        let passed = "0000000000000000.0.0".parse().expect("a position");
        debug(KeysDriver::new(conn).compact_key_events(None, &passed, with.time, with.page.limit))
    }),
    read("fetch_denied_keys_after", |conn, with| {
        debug(KeysDriver::new(conn).fetch_denied_keys_after(None, with.page.limit))
    }),
    read("fetch_api_keys", |conn, with| {
        debug(ApiKeysFacadeDriver::new(conn).fetch_api_keys(&with.tenant_id, None, with.page))
    }),
    read("fetch_api_keys.status", |conn, with| {
        debug(ApiKeysFacadeDriver::new(conn).fetch_api_keys(&with.tenant_id, Some(&with.status), with.page))
    }),
    read("fetch_api_keys.offset", |conn, with| {
        let page = Page { offset: 1, ..with.page };
        debug(ApiKeysFacadeDriver::new(conn).fetch_api_keys(&with.tenant_id, None, page))
    }),
    read("fetch_api_keys.status_offset", |conn, with| {
        let page = Page { offset: 1, ..with.page };
        debug(ApiKeysFacadeDriver::new(conn).fetch_api_keys(&with.tenant_id, Some(&with.status), page))
    }),
    read("fetch_api_keys_after", |conn, with| {
        let (cursor, limit) = (Some(&with.cursor), with.page.limit);
        debug(ApiKeysFacadeDriver::new(conn).fetch_api_keys_after(&with.tenant_id, None, cursor, limit))
    }),
    read("fetch_api_keys_after.status", |conn, with| {
        let (status, cursor, limit) = (Some(&with.status), Some(&with.cursor), with.page.limit);
        debug(ApiKeysFacadeDriver::new(conn).fetch_api_keys_after(&with.tenant_id, status, cursor, limit))
    }),
    read("count_api_keys", |conn, with| {
        debug(ApiKeysFacadeDriver::new(conn).count_api_keys(&with.tenant_id, None))
    }),
    read("count_api_keys.status", |conn, with| {
        debug(ApiKeysFacadeDriver::new(conn).count_api_keys(&with.tenant_id, Some(&with.status)))
    }),
    read("count_api_keys_up_to", |conn, with| {
        let bound = with.page.limit;
        debug(ApiKeysFacadeDriver::new(conn).count_api_keys_up_to(&with.tenant_id, None, bound))
    }),
    read("count_api_keys_up_to.status", |conn, with| {
        let (status, bound) = (Some(&with.status), with.page.limit);
        debug(ApiKeysFacadeDriver::new(conn).count_api_keys_up_to(&with.tenant_id, status, bound))
    }),
    read("fetch_api_key_by_id", |conn, with| {
        debug(ApiKeysFacadeDriver::new(conn).fetch_api_key_by_id(&with.tenant_id, &with.key_id))
    }),
];

/// The maintenance of all tenants' usage.
pub(crate) const MAINTENANCE: &[&str] =
    &["roll_up_usage", "recount_usage", "fetch_usage_drift", "delete_calls_before", "retire_calls_before"];

/// The lookup that finds the tenant, the methods that follow all tenants, and the maintenance of all tenants' usage.
pub(crate) const WITHOUT_TENANT: &[&str] = &[
    "fetch_key_by_hash",
    "fetch_key_events_after",
    "fetch_keys_of_any_tenant_by_prefix",
    "fetch_keys_of_any_tenant_by_prefix.cursor",
    "fetch_key_events_head",
    "compact_key_events",
    "fetch_denied_keys_after",
    "roll_up_usage",
    "recount_usage",
    "fetch_usage_drift",
    "delete_calls_before",
    "retire_calls_before",
];

fn later(time: DateTime<Utc>, by: TimeDelta) -> DateTime<Utc> {
    time.checked_add_signed(by).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The condition on the tenant in a method's statements.
pub(crate) fn confinement(method: &str) -> &'static str {
    match method {
        "record_key_uses.two_tenants" | "try_record_key_uses.two_tenants" => {
            "\"api_keys\".\"tenant_id\" = \"uses\".\"tenant_id\""
        }
        "insert_key" | "insert_keys" => "INSERT INTO \"api_keys\" (\"tenant_id\"",
        "insert_calls" => "INSERT INTO \"proxy_calls\" (\"tenant_id\"",
        _ => "\"tenant_id\" = $",
    }
}

pub(crate) type Call = fn(&mut PgConnection, &Input) -> Result<String>;

pub(crate) const fn read(name: &'static str, call: Call) -> Method {
    Method { name, call, locks_first: false }
}

const fn change(name: &'static str, call: Call) -> Method {
    Method { name, call, locks_first: true }
}

fn debug<T: Debug>(answer: Result<T>) -> Result<String> {
    answer.map(|answer| format!("{answer:?}"))
}

/// An answer without the parts that differ from call to call: the address of a lock in memory, and random ids.
pub(crate) fn comparable(answer: &str) -> String {
    let mut answer = answer.to_owned();
    for made_up in ["holder: ", "unused "] {
        let mut parts = answer.split(made_up);
        let first = parts.next().unwrap_or_default().to_owned();
        answer = parts
            .fold(first, |all, part| all + made_up + part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    answer
}

/// A text that no row holds yet.
fn unused() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("unused {}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn on_locked<T: Debug>(
    conn: &mut PgConnection,
    with: &Input,
    change: impl for<'c> FnOnce(&mut KeysDriver<'c>, LockedKey<'c>) -> Result<T>,
) -> Result<String> {
    let mut keys = KeysDriver::new(conn);
    match keys.fetch_key_for_update(&with.tenant_id, &with.key_id)? {
        Some(key) => debug(change(&mut keys, key)),
        None => Ok("None".into()),
    }
}

/// The methods that send nothing, such as constructors.
const SILENT: &[&str] = &["new", "connection", "into_snapshot", "anywhere"];

#[test]
fn the_list_names_every_public_method_of_the_drivers() {
    let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = vec![src.join("api_keys_facade_driver.rs"), src.join("keys_driver.rs")];
    let mut folders = vec![src.join("keys_driver")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { sources.push(path) }
        }
    }
    let mut public = Vec::new();
    for path in sources {
        for line in std::fs::read_to_string(path).unwrap().lines() {
            if let Some(signature) = line.strip_prefix("    pub fn ") {
                public.push(signature.split(['(', '<']).next().unwrap().to_owned());
            }
        }
    }
    assert!(public.contains(&"fetch_keys".into()), "{public:?}");
    for method in public {
        let listed = METHODS.iter().filter_map(|method| method.name.split('.').next());
        let mut known = listed.chain(SILENT.iter().copied());
        assert!(known.any(|name| name == method), "{method} is not in the list");
    }
}
