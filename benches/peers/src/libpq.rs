//! libpq by hand: prepared once, binary parameters and results, decoded into this crate's structs.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr;

use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, TenantId, UsageBucket};
use chrono::{DateTime, Utc};
use pq_sys::{
    ConnStatusType, ExecStatusType, PGconn, PGresult, PQclear, PQconnectdb, PQerrorMessage, PQexec,
    PQexecPrepared, PQfinish, PQgetisnull, PQgetlength, PQgetvalue, PQntuples, PQprepare, PQresultStatus,
    PQstatus,
};

use crate::contender::Contender;
use crate::{decode, sql};

pub struct Libpq {
    conn: *mut PGconn,
    /// The server's names of the statements, by the address of their text.
    statements: HashMap<*const u8, CString>,
}

struct Rows(*mut PGresult);

impl Libpq {
    pub fn connect(url: &str) -> Self {
        let url = CString::new(url).unwrap();
        // SAFETY: libpq copies what it keeps of the URL.
        let conn = unsafe { PQconnectdb(url.as_ptr()) };
        assert_eq!(unsafe { PQstatus(conn) }, ConnStatusType::CONNECTION_OK);
        Self { conn, statements: HashMap::new() }
    }

    fn rows(&self, result: *mut PGresult) -> Rows {
        // SAFETY: the result is libpq's, and cleared once, by `Rows`.
        let status = unsafe { PQresultStatus(result) };
        let done = [ExecStatusType::PGRES_TUPLES_OK, ExecStatusType::PGRES_COMMAND_OK].contains(&status);
        assert!(done, "{:?}", unsafe { CStr::from_ptr(PQerrorMessage(self.conn)) });
        Rows(result)
    }

    fn simple(&self, sql: &CStr) {
        // SAFETY: the connection is open while `self` lives.
        self.rows(unsafe { PQexec(self.conn, sql.as_ptr()) });
    }

    fn query<const N: usize>(&mut self, sql: &'static str, values: [&[u8]; N]) -> Rows {
        if !self.statements.contains_key(&sql.as_ptr()) {
            let name = CString::new(format!("s{}", self.statements.len())).unwrap();
            let text = CString::new(sql).unwrap();
            // SAFETY: both texts end with a NUL, and libpq copies them.
            self.rows(unsafe { PQprepare(self.conn, name.as_ptr(), text.as_ptr(), 0, ptr::null()) });
            self.statements.insert(sql.as_ptr(), name);
        }
        let name = &self.statements[&sql.as_ptr()];
        let pointers = values.map(|value| value.as_ptr().cast::<c_char>());
        let lengths = values.map(|value| i32::try_from(value.len()).unwrap());
        let formats = [1; N];
        // SAFETY: `N` values, lengths and formats, which live until the call returns.
        let result = unsafe {
            PQexecPrepared(
                self.conn,
                name.as_ptr(),
                i32::try_from(N).unwrap(),
                pointers.as_ptr(),
                lengths.as_ptr(),
                formats.as_ptr(),
                1,
            )
        };
        self.rows(result)
    }
}

impl Drop for Libpq {
    fn drop(&mut self) {
        // SAFETY: finished once.
        unsafe { PQfinish(self.conn) };
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // SAFETY: cleared once.
        unsafe { PQclear(self.0) };
    }
}

impl Rows {
    fn len(&self) -> i32 {
        unsafe { PQntuples(self.0) }
    }

    fn get(&self, row: i32, column: i32) -> Option<&[u8]> {
        // SAFETY: libpq checks the row and the column; the bytes live as long as the result.
        unsafe {
            if PQgetisnull(self.0, row, column) == 1 {
                return None;
            }
            let length = usize::try_from(PQgetlength(self.0, row, column)).unwrap();
            Some(std::slice::from_raw_parts(PQgetvalue(self.0, row, column).cast(), length))
        }
    }

    fn key(&self, row: i32) -> KeySnapshot {
        let text = |column| decode::text(self.get(row, column).unwrap());
        let time = |column| self.get(row, column).map(decode::time);
        KeySnapshot {
            id: text(0).into(),
            tenant_id: text(1).into(),
            name: text(2),
            key_prefix: text(3),
            status: text(4),
            is_frozen: self.get(row, 5).unwrap()[0] == 1,
            frozen_at: time(6),
            created_at: time(7).unwrap(),
            last_used_at: time(8),
            expires_at: time(9),
            total_requests: decode::int8(self.get(row, 10).unwrap()),
        }
    }

    fn usage(&self, row: i32, column: i32) -> KeyUsageSnapshot {
        KeyUsageSnapshot {
            request_count: decode::int8(self.get(row, column).unwrap()),
            spend_cents: self.get(row, column + 1).map(decode::numeric).unwrap_or_default(),
        }
    }
}

fn bytes(id: &impl AsRef<str>) -> &[u8] {
    id.as_ref().as_bytes()
}

impl Contender for Libpq {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Option<KeySnapshot> {
        let rows = self.query(&sql::ONE_KEY, [bytes(tenant_id), bytes(key_id)]);
        (rows.len() == 1).then(|| rows.key(0))
    }

    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Vec<KeySnapshot> {
        let rows = self.query(&sql::PAGE, [bytes(tenant_id), &i64::from(limit).to_be_bytes()]);
        (0..rows.len()).map(|row| rows.key(row)).collect()
    }

    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Vec<(KeySnapshot, KeyUsageSnapshot)> {
        let limit = i64::from(limit).to_be_bytes();
        let rows =
            self.query(&sql::PAGE_WITH_USAGE, [bytes(tenant_id), &limit, &decode::time_to_bytes(since)]);
        (0..rows.len()).map(|row| (rows.key(row), rows.usage(row, 11))).collect()
    }

    fn count(&mut self, tenant_id: &TenantId) -> i64 {
        decode::int8(self.query(&sql::COUNT, [bytes(tenant_id)]).get(0, 0).unwrap())
    }

    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> i64 {
        let bound = i64::from(bound).to_be_bytes();
        decode::int8(self.query(&sql::COUNT_UP_TO, [bytes(tenant_id), &bound]).get(0, 0).unwrap())
    }

    fn usage(&mut self, tenant_id: &TenantId, key_id: &KeyId, since: DateTime<Utc>) -> KeyUsageSnapshot {
        let since = decode::time_to_bytes(since);
        self.query(sql::USAGE, [bytes(tenant_id), bytes(key_id), &since]).usage(0, 0)
    }

    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
    ) -> Vec<UsageBucket> {
        let (from, to) = (decode::time_to_bytes(from), decode::time_to_bytes(to));
        let rows = self.query(sql::SERIES, [bytes(tenant_id), bytes(key_id), &from, &to]);
        let bucket =
            |row| UsageBucket { start: decode::time(rows.get(row, 0).unwrap()), usage: rows.usage(row, 1) };
        (0..rows.len()).map(bucket).collect()
    }

    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> KeySnapshot {
        self.simple(c"BEGIN");
        let key = self.query(&sql::LOCK, [bytes(tenant_id), bytes(key_id)]).key(0);
        let now = decode::time_to_bytes(now);
        let key = self.query(&sql::FREEZE, [bytes(&key.tenant_id), bytes(&key.id), &now]).key(0);
        self.simple(c"COMMIT");
        key
    }
}
