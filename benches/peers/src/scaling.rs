//! What this crate's operations cost as a tenant or a key grows.

use std::time::Duration;

use api_keys_driver::{Bucket, KeyCursor, KeysDriver, Page};
use chrono::TimeDelta;

use crate::data::{Sizes, called, key, now, tenant};
use crate::ours::Ours;
use crate::timing::race;

/// An operation's cost in microseconds at each size.
pub struct Line {
    pub name: &'static str,
    pub costs: Vec<f64>,
}

fn cost(url: &str, budget: Duration, call: impl Fn(&mut KeysDriver<'_>)) -> f64 {
    let mut ours = [Box::new(Ours::connect(url))];
    race(&mut ours, budget, |ours| call(&mut KeysDriver::new(&mut ours.0)))[0].median
}

pub fn by_keys(url: &str, sizes: &Sizes, budget: Duration) -> Vec<Line> {
    let line = |name, call: &dyn Fn(&mut KeysDriver<'_>, u32)| Line {
        name,
        costs: sizes.keys.iter().map(|&size| cost(url, budget, |keys| call(keys, size))).collect(),
    };
    let page = |limit, offset| Page { limit, offset };
    let since = now() - TimeDelta::days(1);
    // The cursors are created once, because only the page after them is timed.
    let cursors: Vec<(u32, KeyCursor)> = sizes
        .keys
        .iter()
        .map(|&size| {
            let mut ours = Ours::connect(url);
            let keys = KeysDriver::new(&mut ours.0).fetch_keys(&tenant(size), page(1, size - 51)).unwrap();
            (size, KeyCursor::from(&keys[0]))
        })
        .collect();
    let last = |size| &cursors.iter().find(|(of, _)| *of == size).expect("a size").1;
    vec![
        line("one key", &|keys, size| {
            drop(keys.fetch_key_by_id(&tenant(size), &key(size, size / 2)).unwrap())
        }),
        line("first page of 50", &|keys, size| drop(keys.fetch_keys(&tenant(size), page(50, 0)).unwrap())),
        line("last page of 50, by cursor", &|keys, size| {
            drop(keys.fetch_keys_after(&tenant(size), Some(last(size)), 50).unwrap());
        }),
        line("last page of 50, by offset", &|keys, size| {
            drop(keys.fetch_keys(&tenant(size), page(50, size - 50)).unwrap());
        }),
        line("page of 50 with usage", &|keys, size| {
            drop(keys.fetch_keys_with_usage(&tenant(size), since, page(50, 0)).unwrap());
        }),
        line("find by prefix", &|keys, size| {
            drop(keys.fetch_keys_by_prefix(&tenant(size), "sk-live-01f4", None, 50).unwrap());
        }),
        line("count up to 100", &|keys, size| {
            keys.count_keys_up_to(&tenant(size), 100).unwrap();
        }),
        line("count", &|keys, size| {
            keys.count_keys(&tenant(size)).unwrap();
        }),
        line("lock + freeze + commit", &|keys, size| {
            let frozen = keys.connection();
            crate::ours::freeze(frozen, &tenant(size), &key(size, size / 2), now());
        }),
    ]
}

pub fn by_calls(url: &str, sizes: &Sizes, budget: Duration) -> Vec<Line> {
    let line = |name, call: &dyn Fn(&mut KeysDriver<'_>, u32)| Line {
        name,
        costs: sizes.calls.iter().map(|&size| cost(url, budget, |keys| call(keys, size))).collect(),
    };
    let (tenant_id, day) = (tenant(10_000), now() - TimeDelta::days(1)..now());
    vec![
        line("usage of the last day (1,440 calls)", &|keys, size| {
            drop(keys.fetch_key_usage(&tenant_id, &called(size), day.start).unwrap());
        }),
        line("series of the last day, by the hour", &|keys, size| {
            drop(keys.fetch_key_usage_series(&tenant_id, &called(size), day.clone(), Bucket::Hour).unwrap());
        }),
        line("usage of all calls, counted but for an hour", &|keys, size| {
            let since = now() - TimeDelta::days(365 * 25);
            drop(keys.fetch_key_usage(&tenant_id, &called(size), since).unwrap());
        }),
    ]
}
