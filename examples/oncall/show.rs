//! Showing one key: its state, who froze it, its history, and a chart of its calls of the last day.

use api_keys_driver::{
    Bucket, KeyAuthSnapshot, KeyEventSnapshot, KeySnapshot, KeysDriver, Page, UsageBucket,
};
use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::{Table, presets};
use diesel::PgConnection;

use crate::{KeyArgs, Result, printable};

pub(crate) fn run(conn: &mut PgConnection, place: &KeyArgs) -> Result {
    let (tenant_id, key_id) = (place.tenant_id(), place.key_id());
    let mut keys = KeysDriver::new(conn);
    let key = keys.fetch_key_by_id(&tenant_id, &key_id)?.ok_or_else(|| place.not_found())?;
    let auth = keys.fetch_key_auth_by_id(&tenant_id, &key_id)?.ok_or_else(|| place.not_found())?;
    println!("{}", state(&key, &auth));

    if let Some(freeze) = keys.fetch_key_freeze(&tenant_id, &key_id)? {
        let by = freeze.frozen_by.unwrap_or_else(|| "somebody unnamed".into());
        let reason = freeze.freeze_reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        println!("frozen {} by {}", moment(freeze.frozen_at), printable(&(by + &reason)));
    }

    println!("\nhistory");
    for event in keys.fetch_key_events(&tenant_id, &key_id, Page::default())? {
        println!("  {:>4}  {}  {}", event.revision, moment(Some(event.at)), what_happened(&event));
    }

    let now = Utc::now();
    let hours =
        keys.fetch_key_usage_series(&tenant_id, &key_id, now - TimeDelta::hours(24)..now, Bucket::Hour)?;
    println!("\ncalls of the last 24 hours, by the hour (UTC)");
    print_chart(&hours);
    Ok(())
}

fn state(key: &KeySnapshot, auth: &KeyAuthSnapshot) -> Table {
    let limit = |limit: Option<i32>| limit.map_or_else(|| "not set".into(), |limit| limit.to_string());
    let text = |text: &Option<String>| text.as_deref().map_or_else(|| "not set".into(), printable);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.add_rows([
        ["name".into(), printable(&key.name)],
        ["tenant".into(), printable(key.tenant_id.as_str())],
        ["key".into(), printable(key.id.as_str())],
        ["secret".into(), printable(&key.key_prefix) + "..."],
        ["user".into(), text(&auth.user_id)],
        ["status".into(), printable(key.status.as_str())],
        ["frozen".into(), moment(key.frozen_at)],
        ["created".into(), moment(Some(key.created_at))],
        ["expires".into(), moment(key.expires_at)],
        ["last used".into(), moment(key.last_used_at)],
        ["uses".into(), key.total_requests.to_string()],
        ["permissions".into(), text(&auth.permissions_json)],
        ["workers".into(), text(&auth.allowed_workers_json)],
        ["requests a minute".into(), limit(auth.rate_limit_rpm)],
        ["runs at a time".into(), limit(auth.max_concurrent_runs)],
    ]);
    table
}

fn print_chart(hours: &[UsageBucket]) {
    const WIDTH: i64 = 50;

    let most = hours.iter().map(|hour| hour.usage.request_count).max().unwrap_or(0).max(1);
    for hour in hours {
        let count = hour.usage.request_count;
        let bar = "█".repeat(usize::try_from(count * WIDTH / most).unwrap_or(0));
        println!("  {}  {count:>8} {:>12.4} ct  {bar}", hour.start.format("%H:%M"), hour.usage.spend_cents);
    }
}

/// "frozen by ada: seen on a forum"
pub(crate) fn what_happened(event: &KeyEventSnapshot) -> String {
    let by = event.actor.as_ref().map(|actor| format!(" by {actor}")).unwrap_or_default();
    let reason = event.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    printable(&format!("{}{by}{reason}", event.kind))
}

pub(crate) fn moment(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(|| "never".into(), |time| time.format("%F %T").to_string())
}
