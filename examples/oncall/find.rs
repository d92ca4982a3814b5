//! Finding a key by its prefix, hash or id. A person on call may not know the tenant.

use api_keys_driver::{KeyHash, KeySnapshot, KeysDriver};
use clap::Subcommand;
use comfy_table::{Table, presets};
use diesel::PgConnection;

use crate::show::moment;
use crate::{KeyArgs, Result, printable};

#[derive(Subcommand)]
pub(crate) enum By {
    /// By the first characters of the secret, among the keys of all tenants.
    Prefix {
        /// The first characters of the secret; only the first twelve are used
        secret: String,
    },
    /// By the hash of the secret, among the keys of all tenants.
    Hash {
        /// The hash, as the engine stores it
        hash: String,
    },
    /// By its id.
    Id(KeyArgs),
}

pub(crate) fn run(conn: &mut PgConnection, by: &By) -> Result {
    const LIMIT: u32 = 50;

    let mut keys = KeysDriver::new(conn);
    let found = match by {
        By::Prefix { secret } => {
            // Somebody may paste a whole secret, so only the part that is stored as the prefix is sent.
            let prefix: String = secret.chars().take(12).collect();
            keys.fetch_keys_of_any_tenant_by_prefix(&prefix, None, LIMIT)?
        }
        By::Hash { hash } => match keys.fetch_key_by_hash(&KeyHash::from(hash.as_str()))? {
            Some(key) => keys.fetch_key_by_id(&key.tenant_id, &key.id)?.into_iter().collect(),
            None => Vec::new(),
        },
        By::Id(place) => keys.fetch_key_by_id(&place.tenant_id(), &place.key_id())?.into_iter().collect(),
    };
    if found.is_empty() {
        return Err("no key matches: check the text, and whether DATABASE_URL is the right database".into());
    }
    println!("{}", table(&found));
    if found.len() == LIMIT as usize {
        println!("these are the first {LIMIT}: give more characters to see fewer");
    }
    Ok(())
}

fn table(keys: &[KeySnapshot]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["tenant", "key", "name", "secret", "status", "frozen", "last used"]);
    table.add_rows(keys.iter().map(|key| {
        [
            printable(key.tenant_id.as_str()),
            printable(key.id.as_str()),
            printable(&key.name),
            printable(&key.key_prefix) + "...",
            printable(key.status.as_str()),
            moment(key.frozen_at),
            moment(key.last_used_at),
        ]
    }));
    table
}
