//! The keys of all tenants that are frozen, and who froze them.

use api_keys_driver::KeysDriver;
use comfy_table::{Table, presets};
use diesel::PgConnection;

use crate::show::moment;
use crate::{Result, printable};

pub(crate) fn run(conn: &mut PgConnection) -> Result {
    let mut keys = KeysDriver::new(conn);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["tenant", "key", "status", "since", "by", "reason"]);
    let mut last = None;
    loop {
        let denied = keys.fetch_denied_keys_after(last.as_ref(), 1_000)?;
        for key in denied.iter().filter(|key| key.is_frozen) {
            // The key was unfrozen after the page was read.
            let Some(freeze) = keys.fetch_key_freeze(&key.tenant_id, &key.id)? else { continue };
            table.add_row([
                printable(key.tenant_id.as_str()),
                printable(key.id.as_str()),
                printable(key.status.as_str()),
                moment(freeze.frozen_at),
                printable(&freeze.frozen_by.unwrap_or_default()),
                printable(&freeze.freeze_reason.unwrap_or_default()),
            ]);
        }
        last = denied.into_iter().last();
        if last.is_none() {
            break;
        }
    }
    if table.is_empty() {
        println!("no key is frozen");
    } else {
        println!("{table}");
    }
    Ok(())
}
