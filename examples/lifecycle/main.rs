//! The whole life of a key, from its insertion to its revocation, and its events.
//!
//! ```text
//! cargo run --example lifecycle
//! ```

mod rotate;

use std::error::Error;

use api_keys_driver::{
    Change, Freeze, KeyId, KeySnapshot, KeySuccessor, KeyUse, KeysDriver, LockedKey, NewKey, Page, Result,
    TenantId,
};
use chrono::{TimeDelta, Utc};
use diesel::{Connection, PgConnection};

use self::rotate::rotate;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let database = throwaway_postgres::empty()?.prepare(api_keys_driver::migrate)?;
    let conn = &mut database.connect()?;
    let tenant_id = TenantId::from("0b9e6a54-13b5-4f6f-9d0e-2f6f0c6f8a11");
    let (old_id, new_id) = (KeyId::from("spring"), KeyId::from("summer"));
    let now = Utc::now();

    // Issue: the engine makes the secret, and keeps its prefix and hash.
    let old = NewKey {
        permissions_json: Some(r#"["read"]"#.into()),
        rate_limit_rpm: Some(60),
        expires_at: Some(now + TimeDelta::days(90)),
        ..NewKey::new(
            tenant_id.clone(),
            old_id.clone(),
            "Production",
            "sk-live-4f2a",
            "hash of spring".into(),
            now,
        )
    };
    let old = KeysDriver::new(conn).insert_key(&old)?;
    println!("inserted  {} {}...", old.name, old.key_prefix);

    // Recognise: the driver finds the key, and the engine decides whether it is valid.
    let found = KeysDriver::new(conn).fetch_key_by_hash(&"hash of spring".into())?.ok_or("an unknown key")?;
    println!("found     {} of tenant {}, {}", found.id, found.tenant_id, found.status);

    // Use: batches of uses, counted exactly.
    let used = KeyUse { tenant_id: tenant_id.clone(), key_id: old_id.clone(), count: 3, at: now };
    let changed = KeysDriver::new(conn).record_key_uses(&[used.clone(), used])?;
    println!("used      {changed} key 6 times");

    // Freeze with a reason, and unfreeze.
    let freeze = Freeze { at: now, by: "ops", reason: Some("odd traffic") };
    change(conn, &tenant_id, &old_id, |keys, key| keys.update_key_frozen_by(key, &freeze))?;
    if let Some(freeze) = KeysDriver::new(conn).fetch_key_freeze(&tenant_id, &old_id)? {
        let (by, reason) = (freeze.frozen_by.unwrap_or_default(), freeze.freeze_reason.unwrap_or_default());
        println!("frozen    {old_id} by {by}: {reason}");
    }
    change(conn, &tenant_id, &old_id, |keys, key| {
        println!("unfrozen  {}, frozen until now: {}", key.id, key.is_frozen);
        keys.update_key_unfrozen(key)
    })?;

    // Rotate with a grace period of one day. The successor has the rights of the old key. Both changes are made in one
    // transaction.
    let seen = KeysDriver::new(conn).fetch_key_by_id(&tenant_id, &old_id)?.ok_or("no such key")?;
    let new = KeySuccessor {
        expires_at: Change::Set(Some(now + TimeDelta::days(180))),
        ..KeySuccessor::new(new_id.clone(), "sk-live-9c1e", "hash of summer".into(), now)
    };
    rotate(conn, &seen, &new, now + TimeDelta::days(1))?.ok_or("not a key to rotate")?;
    if let Some(auth) = KeysDriver::new(conn).fetch_key_auth_by_id(&tenant_id, &new_id)? {
        let (may, a_minute) =
            (auth.permissions_json.unwrap_or_default(), auth.rate_limit_rpm.unwrap_or_default());
        println!("rotated   {old_id} to {new_id}, which may {may}, {a_minute} times a minute");
    }
    for key in KeysDriver::new(conn).fetch_keys_expiring(&tenant_id, now + TimeDelta::days(7), None, 100)? {
        println!("expiring  {} after {} uses", key.id, key.total_requests);
    }

    // Revoke one key, then all other keys of the tenant.
    change(conn, &tenant_id, &old_id, |keys, key| keys.update_key_revoked(key, now, Some("rotated")))?;
    let rest = KeysDriver::new(conn).update_all_keys_revoked(&tenant_id, now, Some("the tenant left"))?;
    println!("revoked   {rest} more: {:?}", KeysDriver::new(conn).count_keys_by_status(&tenant_id)?);

    for key_id in [old_id, new_id] {
        println!("\nrevision  what happened to {key_id}");
        for event in KeysDriver::new(conn).fetch_key_events(&tenant_id, &key_id, Page::default())? {
            let who = event.actor.map(|actor| format!(" by {actor}")).unwrap_or_default();
            let why = event.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            println!("{:8}  {}{who}{why}", event.revision, event.kind);
        }
    }
    Ok(())
}

/// Locks a key and changes it, in one transaction.
fn change(
    conn: &mut PgConnection,
    tenant_id: &TenantId,
    key_id: &KeyId,
    work: impl for<'c> FnOnce(&mut KeysDriver<'c>, LockedKey<'c>) -> Result<KeySnapshot>,
) -> Result<Option<KeySnapshot>> {
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        let Some(key) = keys.fetch_key_for_update(tenant_id, key_id)? else { return Ok(None) };
        work(&mut keys, key).map(Some)
    })
}
