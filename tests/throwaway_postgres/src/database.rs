//! Creates a database for one test, marks it as in use, and drops it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diesel::prelude::*;
use diesel::sql_types::BigInt;

use crate::{BoxError, Result};

diesel::define_sql_function!(fn pg_try_advisory_lock(key: BigInt) -> Bool);
diesel::define_sql_function!(fn pg_advisory_unlock(key: BigInt) -> Bool);

diesel::table! {
    pg_database (datname) {
        datname -> Text,
    }
}

const PREFIX: &str = "throwaway_";

/// A database that is dropped with this value, even if sessions are still connected to it.
pub struct Database {
    key: i64,
    url: String,
    keeper: Arc<Mutex<PgConnection>>,
}

impl Database {
    pub(crate) fn create(server_url: &str, keeper: Arc<Mutex<PgConnection>>) -> Result<Self> {
        let random = RandomState::new().build_hasher().finish();
        let key = i64::from_ne_bytes(random.to_ne_bytes()) & i64::MAX;
        let mut conn = locked(&keeper);
        diesel::select(pg_try_advisory_lock(key)).execute(&mut *conn)?;
        diesel::sql_query(format!("CREATE DATABASE {}", name_of(key))).execute(&mut *conn)?;
        drop(conn);
        Ok(Self { key, url: replace_database(server_url, &name_of(key)), keeper })
    }

    /// Returns the URL of the database, for any PostgreSQL client.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs `prepare`, for example the migrations of an application, on a new connection.
    ///
    /// # Errors
    ///
    /// The error of `prepare`. The database is then dropped.
    pub fn prepare<T, E: Into<BoxError>>(
        self,
        prepare: impl FnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<Self> {
        prepare(&mut self.connect()?).map_err(Into::into)?;
        Ok(self)
    }

    /// Opens a connection.
    pub fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::establish(&self.url)?)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // If the server has ended, its databases are gone too. After any other failure, the next process drops it.
        let _ = drop_database(&mut locked(&self.keeper), self.key);
    }
}

pub(crate) fn locked(keeper: &Mutex<PgConnection>) -> MutexGuard<'_, PgConnection> {
    keeper.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name_of(key: i64) -> String {
    format!("{PREFIX}{key:016x}")
}

/// Drops the databases whose process has ended. A process holds an advisory lock for each of its databases.
pub(crate) fn sweep(conn: &mut PgConnection) -> Result<()> {
    let names: Vec<String> = pg_database::table
        .select(pg_database::datname)
        .filter(pg_database::datname.like("throwaway\\_%"))
        .load(conn)?;
    let keys = names.iter().filter_map(|name| i64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok());
    for key in keys {
        if diesel::select(pg_try_advisory_lock(key)).get_result(conn)? {
            drop_database(conn, key)?;
        }
    }
    Ok(())
}

fn drop_database(conn: &mut PgConnection, key: i64) -> QueryResult<()> {
    diesel::sql_query(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", name_of(key))).execute(conn)?;
    diesel::select(pg_advisory_unlock(key)).execute(conn)?;
    Ok(())
}

/// The URL or key-value string for another database of the same server.
fn replace_database(url: &str, database: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // If a key occurs twice, libpq uses the last value.
        return format!("{url} dbname={database}");
    };
    let (address, parameters) = match rest.split_once('?') {
        Some((address, parameters)) => (address, format!("?{parameters}")),
        None => (rest, String::new()),
    };
    let host = address.split('/').next().unwrap_or_default();
    format!("{scheme}://{host}/{database}{parameters}")
}

#[cfg(test)]
mod tests {
    use super::replace_database;

    #[test]
    fn only_the_database_of_a_url_is_replaced() {
        for (url, expected) in [
            ("postgres://u:p@h:5432/old?sslmode=disable", "postgres://u:p@h:5432/new?sslmode=disable"),
            ("postgresql:///old?host=/dev/shm/x", "postgresql:///new?host=/dev/shm/x"),
            ("postgres://h", "postgres://h/new"),
            ("host=h dbname=old", "host=h dbname=old dbname=new"),
        ] {
            assert_eq!(replace_database(url, "new"), expected);
        }
    }
}
