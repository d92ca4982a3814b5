//! The whole life of a key, from its insertion to its revocation, and what is recorded of it.
//!
//! ```text
//! cargo run --example lifecycle
//! ```

use std::error::Error;

use api_keys_driver::{
    Freeze, KeyId, KeySnapshot, KeyUse, KeysDriver, LockedKey, NewKey, Page, Result, TenantId,
};
use chrono::{TimeDelta, Utc};
use diesel::{Connection, PgConnection};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let database = throwaway_postgres::empty()?.prepare(api_keys_driver::migrate)?;
    let conn = &mut database.connect()?;
    let tenant_id = TenantId::from("0b9e6a54-13b5-4f6f-9d0e-2f6f0c6f8a11");
    let (old_id, new_id) = (KeyId::from("spring"), KeyId::from("summer"));
    let now = Utc::now();

    // Issue: the engine makes the secret, and keeps its prefix and hash.
    let old = NewKey::new(
        tenant_id.clone(),
        old_id.clone(),
        "Production",
        "sk-live-4f2a",
        "hash of spring".into(),
        now,
    );
    let old = KeysDriver::new(conn).insert_key(&old)?;
    println!("inserted  {} {}...", old.name, old.key_prefix);

    // Recognise: the driver finds, the engine judges.
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

    // Rotate with a day of grace: the new key, and the old one's end, or neither.
    let new = NewKey::new(
        tenant_id.clone(),
        new_id.clone(),
        "Production",
        "sk-live-9c1e",
        "hash of summer".into(),
        now,
    );
    change(conn, &tenant_id, &old_id, |keys, old| {
        keys.insert_key(&new)?;
        keys.update_key_expires_at(old, Some(now + TimeDelta::days(1)))
    })?;
    for key in
        KeysDriver::new(conn).fetch_keys_expiring(&tenant_id, now + TimeDelta::days(7), Page::default())?
    {
        println!("expiring  {} after {} uses", key.id, key.total_requests);
    }

    // Revoke one key, then the rest of a tenant that leaves.
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

/// Locks a key and changes it, in a transaction of its own.
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
