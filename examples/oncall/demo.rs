//! Demo data: three tenants with a few keys, one of them frozen, and a day of calls.

use api_keys_driver::{Freeze, KeysDriver, NewCall, NewKey, migrate};
use chrono::{TimeDelta, Utc};
use diesel::Connection;
use throwaway_postgres::Database;

use crate::Result;

pub(crate) fn database() -> Result<Database> {
    let database = throwaway_postgres::empty()?.prepare(migrate)?;
    let mut conn = database.connect()?;
    let now = Utc::now();
    let mut keys = KeysDriver::new(&mut conn);
    for (tenant, key, name, prefix) in [
        ("acme", "acme-prod", "Production", "sk-live-4f2a"),
        ("acme", "acme-laptop", "Ada's laptop", "sk-live-9c1e"),
        ("globex", "globex-ci", "Nightly build", "sk-live-4f77"),
        ("initech", "initech-tps", "TPS reports", "sk-live-0b0b"),
    ] {
        let created_at = now - TimeDelta::days(30);
        let new =
            NewKey::new(tenant.into(), key.into(), name, prefix, format!("hash of {key}").into(), created_at);
        keys.insert_key(&new)?;
    }
    let calls: Vec<NewCall> = (0..400)
        .map(|index: i64| {
            let at = now - TimeDelta::minutes(index * index % 1_440);
            NewCall {
                cost_cents: Some(bigdecimal::BigDecimal::new((index % 90 + 5).into(), 3)),
                ..NewCall::new("acme".into(), format!("call-{index}"), "acme-prod".into(), at)
            }
        })
        .collect();
    keys.insert_calls(&calls)?;

    let freeze = Freeze { at: now - TimeDelta::hours(2), by: "ada", reason: Some("in a public repository") };
    conn.transaction(|conn| {
        let mut keys = KeysDriver::new(conn);
        match keys.fetch_key_for_update(&"globex".into(), &"globex-ci".into())? {
            Some(key) => keys.update_key_frozen_by(key, &freeze).map(drop),
            None => Ok(()),
        }
    })?;
    Ok(database)
}
