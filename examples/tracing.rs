//! Writes slow statements, transactions and retries to `tracing`, with Diesel's instrumentation and
//! `Transaction::on_retry`.
//!
//! ```text
//! cargo run --example tracing
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use api_keys_driver::{KeyHash, KeyId, KeysDriver, NewKey, PoolConfig, TenantId, Transaction};
use chrono::Utc;
use diesel::connection::{
    Instrumentation, InstrumentationEvent, SimpleConnection, set_default_instrumentation,
};
use tracing::{debug, warn};

/// Reports each statement that is slow, and each that fails.
struct Trace {
    slow: Duration,
    started: Option<Instant>,
}

impl Instrumentation for Trace {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::StartQuery { .. } => self.started = Some(Instant::now()),
            InstrumentationEvent::FinishQuery { query, error, .. } => {
                let took = self.started.take().map_or(Duration::ZERO, |started| started.elapsed());
                if took < self.slow && error.is_none() {
                    return;
                }
                // After this marker come the values: tenants, keys and times. A hash is shown as `KeyHash(..)`.
                let text = query.to_string();
                let sql = text.split(" -- binds:").next().unwrap_or_default();
                warn!(?took, error = error.map(tracing::field::display), sql, "statement");
            }
            InstrumentationEvent::BeginTransaction { depth, .. } => debug!(depth, "begin"),
            InstrumentationEvent::CommitTransaction { depth, .. } => debug!(depth, "commit"),
            InstrumentationEvent::RollbackTransaction { depth, .. } => debug!(depth, "roll back"),
            // Events for a new connection hold the connection string with its password. Never log them.
            _ => {}
        }
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).init();
    let database = throwaway_postgres::empty()?.prepare(api_keys_driver::migrate)?;

    // From now on, each new connection gets its own instrumentation.
    set_default_instrumentation(|| {
        Some(Box::new(Trace { slow: Duration::from_millis(100), started: None }))
    })?;
    let pool = PoolConfig::new(database.url()).size(3).build()?;
    let transaction = Transaction::attempts(3)
        .on_retry(|retry| warn!(attempt = retry.attempt, reason = %retry.reason, "transaction runs again"));

    let (tenant_id, key_id) = (TenantId::from("tenant"), KeyId::from("key"));
    let hash = KeyHash::from("hash of the secret");
    let new = NewKey::new(tenant_id.clone(), key_id.clone(), "Production", "sk-live-4f2a", hash, Utc::now());
    let conn = &mut pool.get()?;
    transaction.run(conn, |conn| KeysDriver::new(conn).insert_key(&new))?;

    // One slow statement, and one that the server refuses.
    conn.batch_execute("SELECT pg_sleep(0.2)")?;
    let refused = transaction.run(conn, |conn| KeysDriver::new(conn).insert_key(&new));
    println!("{}", refused.unwrap_err());

    // Two transactions wait for each other's key. The server rolls one back, and it runs again.
    let second = NewKey { id: "second".into(), key_hash: KeyHash::from("another"), ..new };
    KeysDriver::new(conn).insert_key(&second)?;
    let lock_both = |first: &KeyId, then: &KeyId| -> api_keys_driver::Result<()> {
        transaction.run(&mut *pool.get()?, |conn| {
            let mut keys = KeysDriver::new(conn);
            let _first = keys.fetch_key_for_update(&tenant_id, first)?;
            std::thread::sleep(Duration::from_millis(300));
            keys.fetch_key_for_update(&tenant_id, then).map(drop)
        })
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| lock_both(&second.id, &key_id));
        lock_both(&key_id, &second.id).and(other.join().expect("no panic"))
    })?;
    Ok(())
}
