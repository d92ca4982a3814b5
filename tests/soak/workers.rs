//! The work of the workers, whatever happens to their connections.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::schema::proxy_calls;
use api_keys_driver::{
    Advice, Error, EventPosition, KeyId, KeyUse, KeysDriver, Page, Pool, Result, TenantId, Transaction,
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;

use super::ledger::ledger;
use super::{COUNTED, KEYS, Soak, TENANT, add};

const PAUSE: Duration = Duration::from_millis(20);

impl Soak {
    pub(crate) fn until_over(&self, work: fn(&Self, u64)) {
        while !self.over.load(Relaxed) {
            work(self, self.next.fetch_add(1, Relaxed));
        }
    }

    /// Each pool names the servers in another form of connection string.
    fn pool(&self, n: u64) -> &Pool {
        &self.pools[usize::try_from(n).expect("a small number") % self.pools.len()]
    }

    /// Repeats the work on new connections until it succeeds.
    fn retry<T>(&self, n: u64, mut ask: impl FnMut(&mut PgConnection) -> Result<T>) -> Option<T> {
        while !self.over.load(Relaxed) {
            let error = match self.pool(n).get().and_then(|mut conn| ask(&mut conn)) {
                Ok(answer) => return Some(answer),
                Err(error) => error,
            };
            match error.advice() {
                Advice::RetryTransaction => {}
                Advice::Reconnect => add(&self.counts.reconnects),
                Advice::CheckOutcome | Advice::Fail => {
                    eprintln!("unexpected: {error:?}");
                    add(&self.counts.unexpected);
                }
            }
            thread::sleep(PAUSE);
        }
        None
    }

    /// Freezes what is not frozen and unfreezes what is, two keys in one transaction and in any order.
    pub(crate) fn change(&self, n: u64) {
        let change = i64::try_from(n).expect("a small number");
        let now = DateTime::UNIX_EPOCH + TimeDelta::microseconds(change);
        let keys = [n % KEYS, n.wrapping_mul(7) / 3 % KEYS].map(|key| KeyId::from(key.to_string()));
        self.acknowledged.lock().expect("no panic").insert(change, false);
        let (mut runs, begun) = (0, Instant::now());
        let done = self.retry(n, |conn| {
            let done = Transaction::attempts(3).run(conn, |conn| {
                runs += 1;
                keys.iter().try_for_each(|key_id| toggle(conn, &self.tenant_id, key_id, change, now))
            });
            match done {
                Err(error) if error.advice() == Advice::CheckOutcome => {
                    add(&self.counts.unknown_commits);
                    self.is_committed(n, change)
                }
                done => done.map(|()| true),
            }
        });
        self.counts.retries.fetch_add(u64::saturating_sub(runs, 1), Relaxed);
        match done {
            Some(true) => {
                self.acknowledged.lock().expect("no panic").insert(change, true);
                add(&self.counts.changes);
                let waited = u64::try_from(begun.elapsed().as_millis()).expect("a short time");
                self.counts.longest_pause.fetch_max(waited, Relaxed);
            }
            // The change is known not to be committed, or the time is over. It must not appear later.
            Some(false) | None => add(&self.counts.given_up),
        }
    }

    fn is_committed(&self, n: u64, change: i64) -> Result<bool> {
        self.ask_until_known(n, |conn| {
            let there = ledger::table.filter(ledger::change.eq(change));
            Ok(diesel::select(diesel::dsl::exists(there)).get_result(conn)?)
        })
    }

    /// Repeats the query until it is answered, also after the end of the soak.
    fn ask_until_known<T>(&self, n: u64, look: impl Fn(&mut PgConnection) -> Result<T>) -> Result<T> {
        loop {
            match self.pool(n).get().and_then(|mut conn| look(&mut conn)) {
                Err(error) if error.advice() == Advice::Reconnect => thread::sleep(PAUSE),
                known => return known,
            }
        }
    }

    /// Records a use with a statement that commits by itself. No other worker uses the key, so its counter tells
    /// whether the use was recorded.
    pub(crate) fn use_once(&self, n: u64) {
        let (tenant_id, key_id) = (TenantId::from(COUNTED), KeyId::from(COUNTED));
        let used = KeyUse { tenant_id, key_id, count: 1, at: DateTime::UNIX_EPOCH };
        let known =
            self.retry(n, |conn| match KeysDriver::new(conn).record_key_uses(std::slice::from_ref(&used)) {
                Err(error) if error.advice() == Advice::CheckOutcome => {
                    add(&self.counts.unknown_commits);
                    Ok(false)
                }
                recorded => recorded.map(|_| true),
            });
        let recorded = known.is_some_and(|known| {
            known || {
                let counted = self.ask_until_known(n, |conn| {
                    let key = KeysDriver::new(conn).fetch_key_by_id(&used.tenant_id, &used.key_id)?;
                    Ok(key.expect("the key").total_requests.unsigned_abs())
                });
                counted.expect("the count of uses") > self.counts.uses.load(Relaxed)
            }
        });
        if recorded {
            add(&self.counts.uses);
        }
    }

    /// Inserts a call with a unique id, so that inserting it again changes nothing.
    pub(crate) fn meter(&self, n: u64) {
        let recorded = self.retry(n, |conn| {
            diesel::insert_into(proxy_calls::table)
                .values((
                    proxy_calls::id.eq(n.to_string()),
                    proxy_calls::tenant_id.eq(TENANT),
                    proxy_calls::api_key_id.eq((n % KEYS).to_string()),
                    proxy_calls::endpoint.eq(""),
                    proxy_calls::model.eq(""),
                    proxy_calls::request_hash.eq(""),
                    proxy_calls::request_json.eq("{}"),
                ))
                .on_conflict_do_nothing()
                .execute(conn)?;
            Ok(())
        });
        if recorded.is_some() {
            add(&self.counts.calls);
        }
    }

    pub(crate) fn read(&self, n: u64) {
        let key_id = KeyId::from((n % KEYS).to_string());
        let read = self.retry(n, |conn| {
            let mut keys = KeysDriver::new(conn);
            let key = keys.fetch_key_by_id(&self.tenant_id, &key_id)?;
            let page = keys.fetch_keys(&self.tenant_id, Page::default())?;
            Ok(key.is_some_and(|key| key.is_frozen == key.frozen_at.is_some()) && page.len() as u64 == KEYS)
        });
        match read {
            Some(true) => add(&self.counts.reads),
            Some(false) => add(&self.counts.unexpected),
            None => {}
        }
    }

    pub(crate) fn follow(&self, n: u64) {
        self.retry(n, |conn| self.follow_once(conn));
        thread::sleep(PAUSE);
    }

    pub(crate) fn follow_to_the_end(&self, conn: &mut PgConnection) {
        while self.follow_once(conn).expect("events") > 0 {}
    }

    /// Follows the events after the last position, and counts them.
    fn follow_once(&self, conn: &mut PgConnection) -> Result<usize> {
        let mut position = self.position.lock().expect("no panic");
        let events = match KeysDriver::new(conn).fetch_key_events_after(position.as_ref(), 1000) {
            Err(Error::PositionElsewhere) => {
                // A failover to a synchronous standby lost nothing.
                *position = position.map(EventPosition::anywhere);
                return Ok(1);
            }
            events => events?,
        };
        *position = events.last().map(|event| event.position).or(*position);
        self.counts.events.fetch_add(events.len() as u64, Relaxed);
        Ok(events.len())
    }
}

/// Freezes or unfreezes a key, records a use of it, and adds a row to the ledger.
fn toggle(
    conn: &mut PgConnection,
    tenant_id: &TenantId,
    key_id: &KeyId,
    change: i64,
    now: DateTime<Utc>,
) -> Result<()> {
    let mut keys = KeysDriver::new(conn);
    let locked = keys.fetch_key_for_update(tenant_id, key_id)?.expect("the key");
    let changed = if locked.is_frozen {
        keys.update_key_unfrozen(locked)
    } else {
        keys.update_key_frozen(locked, now)
    }?;
    let used = KeyUse { tenant_id: tenant_id.clone(), key_id: key_id.clone(), count: 1, at: now };
    keys.record_key_uses(&[used])?;
    diesel::insert_into(ledger::table)
        .values((
            ledger::change.eq(change),
            ledger::key_id.eq(key_id.as_str()),
            ledger::frozen_at.eq(changed.frozen_at),
        ))
        .execute(keys.connection())?;
    Ok(())
}
