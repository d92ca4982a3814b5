//! The rows that the workers change, the ledger of their changes, and the comparison at the end.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use api_keys_driver::schema::{api_key_events, api_keys, proxy_calls};
use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;

use super::{COUNTED, KEYS, POOL, Soak, TENANT, add};

diesel::table! {
    /// The committed changes, written in the same transactions as the changes.
    ledger (seq) {
        /// In the order of the locks.
        seq -> BigInt,
        /// The number of the change.
        change -> BigInt,
        /// The key that it changed.
        key_id -> Text,
        /// The key's `frozen_at` after the change.
        frozen_at -> Nullable<Timestamptz>,
    }
}

pub(crate) fn set_up(conn: &mut PgConnection) {
    conn.batch_execute(&format!(
        "CREATE TABLE ledger (seq bigserial PRIMARY KEY, change bigint NOT NULL, key_id text NOT NULL,
                              frozen_at timestamptz);
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash)
         SELECT n, '{TENANT}', n, '', n FROM generate_series(0, {KEYS} - 1) AS n;
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash)
         VALUES ('{COUNTED}', '{COUNTED}', '', '', '{COUNTED}');
         DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = 20', current_database());
         END $$"
    ))
    .expect("keys");
}

impl Soak {
    /// Compares the database with the answers that the workers got.
    pub(crate) fn check(&self, conn: &mut PgConnection) {
        self.check_changes(conn);
        self.check_uses(conn);
        self.check_calls(conn);
        self.check_events(conn);
        self.check_sessions(conn);
    }

    fn check_changes(&self, conn: &mut PgConnection) {
        let entries: Vec<(i64, String, Option<DateTime<Utc>>)> = ledger::table
            .order(ledger::seq)
            .select((ledger::change, ledger::key_id, ledger::frozen_at))
            .load(conn)
            .expect("the ledger");
        let keys: Vec<(String, Option<DateTime<Utc>>, i64)> = api_keys::table
            .select((api_keys::id, api_keys::frozen_at, api_keys::total_requests))
            .filter(api_keys::tenant_id.eq(TENANT))
            .load(conn)
            .expect("the keys");

        // The changes of a key alternate, the last one is the state of the key, and each is counted as a use.
        for (id, frozen_at, uses) in keys {
            let own: Vec<_> = entries.iter().filter(|entry| entry.1 == id).map(|entry| entry.2).collect();
            let out_of_turn = own.iter().enumerate().filter(|(n, frozen)| frozen.is_some() == (n % 2 == 1));
            self.counts.lost.fetch_add(out_of_turn.count() as u64, Relaxed);
            if own.last().copied().flatten() != frozen_at {
                add(&self.counts.lost);
            }
            let (uses, own) = (uses.unsigned_abs(), own.len() as u64);
            self.counts.lost.fetch_add(own.saturating_sub(uses), Relaxed);
            self.counts.doubled.fetch_add(uses.saturating_sub(own), Relaxed);
        }

        let mut rows: HashMap<i64, u64> = HashMap::new();
        for (change, ..) in &entries {
            *rows.entry(*change).or_default() += 1;
        }
        for (change, acknowledged) in &*self.acknowledged.lock().expect("no panic") {
            match (acknowledged, rows.get(change).copied().unwrap_or(0)) {
                (true, 2) | (false, 0) => {}
                (true, 0..2) => add(&self.counts.lost),
                (true, _) => add(&self.counts.doubled),
                (false, _) => add(&self.counts.unacknowledged),
            }
        }
    }

    fn check_uses(&self, conn: &mut PgConnection) {
        let counted: i64 =
            api_keys::table.find(COUNTED).select(api_keys::total_requests).get_result(conn).expect("the key");
        let (counted, uses) = (counted.unsigned_abs(), self.counts.uses.load(Relaxed));
        self.counts.lost.fetch_add(uses.saturating_sub(counted), Relaxed);
        self.counts.doubled.fetch_add(counted.saturating_sub(uses), Relaxed);
    }

    fn check_calls(&self, conn: &mut PgConnection) {
        let calls: i64 = proxy_calls::table.count().get_result(conn).expect("the calls");
        let acknowledged = self.counts.calls.load(Relaxed);
        self.counts.lost.fetch_add(acknowledged.saturating_sub(calls.unsigned_abs()), Relaxed);
    }

    fn check_events(&self, conn: &mut PgConnection) {
        self.follow_to_the_end(conn);
        let events: i64 = api_key_events::table.count().get_result(conn).expect("the events");
        self.counts
            .skipped
            .fetch_add(events.unsigned_abs().abs_diff(self.counts.events.load(Relaxed)), Relaxed);
    }

    fn check_sessions(&self, conn: &mut PgConnection) {
        let states = self.pools.iter().map(|pool| pool.as_r2d2().state());
        let held: u32 = states.map(|state| state.connections - state.idle_connections).sum();
        let in_transaction = diesel::sql_query(
            "SELECT FROM pg_stat_activity WHERE application_name = 'soak' AND state <> 'idle'",
        );
        let busy = in_transaction.execute(conn).expect("the sessions");
        let sessions = diesel::sql_query("SELECT FROM pg_stat_activity WHERE application_name = 'soak'");
        let most = POOL as usize * self.pools.len();
        let too_many = sessions.execute(conn).expect("the sessions").saturating_sub(most);
        self.counts.leaked.fetch_add(u64::from(held) + busy as u64 + too_many as u64, Relaxed);
    }
}
