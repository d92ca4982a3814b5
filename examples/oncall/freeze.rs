//! Freezing and unfreezing: lock, decide, change, in one transaction.

use api_keys_driver::{Error, KeySnapshot, KeysDriver, Transaction};
use chrono::Utc;
use clap::Args;
use diesel::PgConnection;

use crate::{KeyArgs, Result, printable};

#[derive(Args)]
pub(crate) struct Freeze {
    #[command(flatten)]
    place: KeyArgs,
    /// Who freezes it
    #[arg(long)]
    by: String,
    /// Why
    #[arg(long)]
    reason: Option<String>,
}

pub(crate) fn run(conn: &mut PgConnection, Freeze { place, by, reason }: &Freeze) -> Result {
    let freeze = api_keys_driver::Freeze { at: Utc::now(), by, reason: reason.as_deref() };
    let key = Transaction::attempts(3).run(conn, |conn| {
        let mut keys = KeysDriver::new(conn);
        let Some(key) = keys.fetch_key_for_update(&place.tenant_id(), &place.key_id())? else {
            return Ok(None);
        };
        keys.update_key_frozen_by(key, &freeze).map(Some)
    })?;
    let key = key.ok_or_else(|| place.not_found())?;
    println!("{} is frozen since {}", label(&key), freeze.at.format("%F %T UTC"));
    Ok(())
}

pub(crate) fn undo(conn: &mut PgConnection, place: &KeyArgs) -> Result {
    let key = Transaction::attempts(3).run(conn, |conn| {
        let mut keys = KeysDriver::new(conn);
        let Some(key) = keys.fetch_key_for_update(&place.tenant_id(), &place.key_id())? else {
            return Ok::<_, Error>(None);
        };
        keys.update_key_unfrozen(key).map(Some)
    })?;
    let key = key.ok_or_else(|| place.not_found())?;
    println!("{} is not frozen, and its status is {}", label(&key), printable(key.status.as_str()));
    Ok(())
}

fn label(key: &KeySnapshot) -> String {
    printable(&format!("{} ({}...)", key.name, key.key_prefix))
}
