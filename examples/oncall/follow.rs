//! The changes of all tenants' keys, as they are committed.

use std::time::Duration;

use api_keys_driver::{KeyEventListener, KeysDriver};
use clap::Args;
use diesel::PgConnection;

use crate::show::{moment, what_happened};
use crate::{Result, printable};

#[derive(Args)]
pub(crate) struct Follow {
    /// Stop after so many seconds without a change
    #[arg(long)]
    seconds: Option<u64>,
}

pub(crate) fn run(conn: &mut PgConnection, follow: &Follow) -> Result {
    let patience = follow.seconds.map(Duration::from_secs);
    let mut position = KeysDriver::new(conn).fetch_key_events_head()?;
    let mut listener = KeyEventListener::new(conn)?;
    let mut quiet = Duration::ZERO;
    println!("following from {position}");
    loop {
        let events = KeysDriver::new(listener.connection()).fetch_key_events_after(Some(&position), 100)?;
        let Some(last) = events.last() else {
            if patience.is_some_and(|patience| quiet >= patience) {
                return Ok(());
            }
            listener.wait(Duration::from_secs(1))?;
            quiet += Duration::from_secs(1);
            continue;
        };
        position = last.position;
        quiet = Duration::ZERO;
        for event in events {
            let key = printable(&format!("{}  {}", event.tenant_id, event.key_id));
            println!("{}  {key}  {}", moment(Some(event.at)), what_happened(&event));
        }
    }
}
