use std::thread;
use std::time::Duration;

use diesel::dsl::select;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::{Error, Result};

/// The crate's migrations, for tools that list them. To run them, call [`migrate`].
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// The indexes that the migrations build concurrently. An interrupted build leaves its index behind, invalid.
const BUILT_CONCURRENTLY: &[&str] = &[
    "uq_api_keys_key_hash",
    "ix_api_keys_tenant_newest_first",
    "ix_proxy_calls_key_usage",
    "ix_api_keys_tenant_status_expiry",
    "ix_api_keys_tenant_shown_newest_first",
    "ix_api_keys_tenant_status_newest_first",
];

/// The advisory lock that only one migrator of a database holds: `api_keys` in ASCII.
const MIGRATOR: i64 = i64::from_be_bytes(*b"api_keys");

const POLL: Duration = Duration::from_millis(20);

#[diesel::declare_sql_function]
extern "SQL" {
    fn current_setting(name: Text) -> Text;
    fn pg_try_advisory_lock(key: BigInt) -> Bool;
    fn pg_advisory_unlock(key: BigInt) -> Bool;
    fn set_config(name: Text, value: Text, is_local: Bool) -> Text;
}

diesel::table! {
    pg_class (oid) {
        oid -> Oid,
        relname -> Text,
    }
}

diesel::table! {
    pg_index (indexrelid) {
        indexrelid -> Oid,
        indisvalid -> Bool,
    }
}

diesel::joinable!(pg_index -> pg_class (indexrelid));
diesel::allow_tables_to_appear_in_same_query!(pg_class, pg_index);

/// Brings a database to the schema that this crate needs, and returns the names of the migrations
/// that this call applied, oldest first.
///
/// It works on an empty database and on the existing service's, with its rows and its writers. Many
/// processes may call it at once: one migrates, the others wait for it and find nothing to do.
/// Strong locks are short, and given up after five seconds of waiting; indexes are built
/// concurrently. The time that the builds take grows with the tables, so the session's
/// `statement_timeout` and `lock_timeout` are lifted meanwhile, and put back.
///
/// Call it outside a transaction, on a connection that reaches the server directly: the lock between
/// migrators belongs to a session, which a transaction-mode bouncer does not keep.
///
/// # Errors
///
/// [`Error::Migration`] when a step could not be done. The steps before it stand, the step itself
/// left nothing behind, and the next call goes on from there. Rows that a later step would forbid
/// (`created_at` NULL, a `key_hash` twice) are found, and named in the source, before anything is changed.
///
/// ```
/// # fn main() -> Result<(), throwaway_postgres::BoxError> {
/// # let database = throwaway_postgres::empty()?;
/// # let mut conn = database.connect()?;
/// let applied = api_keys_driver::migrate(&mut conn)?;
/// assert!(applied[0].ends_with("_create_api_keys"));
/// assert!(api_keys_driver::migrate(&mut conn)?.is_empty());
/// # Ok(())
/// # }
/// ```
pub fn migrate(conn: &mut PgConnection) -> Result<Vec<String>> {
    // Polled, because a session that waits inside `pg_advisory_lock` would hold up the concurrent
    // index build of the one that it waits for.
    while !select(pg_try_advisory_lock(MIGRATOR)).get_result::<bool>(conn)? {
        thread::sleep(POLL);
    }
    let applied = without_timeouts(conn, apply_pending);
    // A lost connection gave the lock up by itself, and its loss is already in `applied`.
    let unlocked = select(pg_advisory_unlock(MIGRATOR)).execute(conn);
    let names = applied?;
    unlocked?;
    Ok(names)
}

fn apply_pending(conn: &mut PgConnection) -> Result<Vec<String>> {
    drop_invalid_indexes(conn)?;
    let pending = conn.pending_migrations(MIGRATIONS).map_err(Error::Migration)?;
    let mut names = Vec::with_capacity(pending.len());
    for migration in pending {
        if let Err(error) = conn.run_migration(&migration) {
            // What stopped the migration matters more than a failure to clean up, which the next call repeats.
            let _ = drop_invalid_indexes(conn);
            return Err(Error::Migration(error));
        }
        names.push(migration.name().to_string());
    }
    Ok(names)
}

fn drop_invalid_indexes(conn: &mut PgConnection) -> Result<()> {
    let invalid: Vec<String> = pg_index::table
        .inner_join(pg_class::table)
        .filter(pg_index::indisvalid.eq(false))
        .filter(pg_class::relname.eq_any(BUILT_CONCURRENTLY))
        .select(pg_class::relname)
        .load(conn)?;
    for name in invalid {
        diesel::sql_query(format!("DROP INDEX CONCURRENTLY {name}")).execute(conn)?;
    }
    Ok(())
}

fn without_timeouts<T>(
    conn: &mut PgConnection,
    work: impl FnOnce(&mut PgConnection) -> Result<T>,
) -> Result<T> {
    let settings = ["statement_timeout", "lock_timeout"];
    let mut before = Vec::new();
    for setting in settings {
        before.push(select(current_setting(setting)).get_result::<String>(conn)?);
        select(set_config(setting, "0", false)).execute(conn)?;
    }
    let done = work(conn);
    for (setting, value) in settings.iter().zip(before) {
        // Fails only on a broken connection, which has no settings to put back.
        let _ = select(set_config(setting, value, false)).execute(conn);
    }
    done
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::BUILT_CONCURRENTLY;

    #[test]
    fn every_index_that_is_built_concurrently_is_known() {
        let mut built = Vec::new();
        for migration in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).unwrap() {
            let Ok(up) = fs::read_to_string(migration.unwrap().path().join("up.sql")) else { continue };
            if let Some((_, rest)) = up.split_once("INDEX CONCURRENTLY ") {
                built.push(rest.split_whitespace().next().unwrap().to_owned());
            }
        }
        let mut known = BUILT_CONCURRENTLY.to_vec();
        known.sort_unstable();
        built.sort_unstable();
        assert_eq!(built, known);
    }
}
