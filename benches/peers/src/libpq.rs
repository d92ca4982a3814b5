//! libpq by hand: prepared once, binary parameters and results, decoded into plain structs.

use std::collections::HashSet;
use std::ffi::{CStr, CString, c_char};
use std::ptr;

use api_keys_driver::{KeyId, KeySnapshot, KeyUsageSnapshot, KeyUse, TenantId, UsageBucket};
use chrono::{DateTime, Utc};
use pq_sys::{
    ConnStatusType, ExecStatusType, PGconn, PGresult, PQclear, PQcmdTuples, PQconnectdb, PQerrorMessage,
    PQexec, PQexecPrepared, PQfinish, PQgetisnull, PQgetlength, PQgetvalue, PQntuples, PQresultStatus,
    PQstatus,
};

use crate::answer::{Answer, Key, Usage};
use crate::contender::{Contender, Prefix};
use crate::sql::Statement;
use crate::{decode, sql};

/// A value in the binary format, or NULL.
type Value<'a> = Option<&'a [u8]>;

pub struct Libpq {
    conn: *mut PGconn,
    /// The names of the statements that are prepared.
    statements: HashSet<&'static str>,
}

struct Rows(*mut PGresult);

impl Libpq {
    pub fn connect(url: &str) -> Self {
        let url = CString::new(url).unwrap();
        // SAFETY: libpq copies what it keeps of the URL.
        let conn = unsafe { PQconnectdb(url.as_ptr()) };
        assert_eq!(unsafe { PQstatus(conn) }, ConnStatusType::CONNECTION_OK);
        Self { conn, statements: HashSet::new() }
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

    fn query<const N: usize>(&mut self, statement: &Statement, values: [Value<'_>; N]) -> Rows {
        if self.statements.insert(statement.name) {
            self.simple(&CString::new(statement.prepare).unwrap());
        }
        let name = CString::new(statement.name).unwrap();
        let pointers = values.map(|value| value.map_or(ptr::null(), |bytes| bytes.as_ptr().cast::<c_char>()));
        let lengths = values.map(|value| i32::try_from(value.map_or(0, <[u8]>::len)).unwrap());
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

    /// The number of rows that the statement changed.
    fn changed(&self) -> i64 {
        // SAFETY: libpq answers with text that lives as long as the result.
        let count = unsafe { CStr::from_ptr(PQcmdTuples(self.0)) };
        count.to_str().unwrap().parse().unwrap()
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

    /// A key whose row has its tenant after its id.
    fn key(&self, row: i32) -> Key {
        self.key_of(decode::text(self.get(row, 1).unwrap()), row, 2)
    }

    /// A key. The columns except its ids start at `index`.
    fn key_of(&self, tenant_id: String, row: i32, index: i32) -> Key {
        let text = |column| decode::text(self.get(row, column).unwrap());
        let time = |column| self.get(row, column).map(decode::time);
        let is = |column| self.get(row, column).unwrap()[0] == 1;
        Key {
            id: text(0),
            tenant_id,
            name: text(index),
            key_prefix: text(index + 1),
            status: text(index + 2),
            is_frozen: is(index + 3),
            frozen_at: time(index + 4),
            created_at: time(index + 5).unwrap(),
            last_used_at: time(index + 6),
            expires_at: time(index + 7),
            total_requests: decode::int8(self.get(row, index + 8).unwrap()),
            is_synthetic: is(index + 9),
            revision: decode::int8(self.get(row, index + 10).unwrap()),
        }
    }

    fn usage(&self, row: i32, column: i32) -> Usage {
        Usage {
            request_count: decode::int8(self.get(row, column).unwrap()),
            spend_cents: decode::numeric(self.get(row, column + 1).unwrap()),
            is_rounded: self.get(row, column + 2).unwrap()[0] == 1,
        }
    }
}

fn bytes(id: &impl AsRef<str>) -> Value<'_> {
    Some(id.as_ref().as_bytes())
}

/// The key, the count and the time of each use, as arrays.
fn arrays(uses: &[KeyUse]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    (
        decode::texts_to_bytes(uses.iter().map(|used| used.key_id.as_str())),
        decode::int8s_to_bytes(uses.iter().map(|used| used.count.into())),
        decode::times_to_bytes(uses.iter().map(|used| used.at)),
    )
}

impl Contender for Libpq {
    fn one_key(&mut self, tenant_id: &TenantId, key_id: &KeyId) -> Answer<Option<KeySnapshot>> {
        let rows = self.query(&sql::ONE_KEY, [bytes(tenant_id), bytes(key_id)]);
        Answer::Peer((rows.len() == 1).then(|| rows.key(0)))
    }

    fn page(&mut self, tenant_id: &TenantId, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let rows = self.query(&sql::PAGE, [bytes(tenant_id), Some(&i64::from(limit).to_be_bytes())]);
        Answer::Peer((0..rows.len()).map(|row| rows.key_of(tenant_id.to_string(), row, 1)).collect())
    }

    fn page_with_usage(
        &mut self,
        tenant_id: &TenantId,
        limit: u32,
        since: DateTime<Utc>,
    ) -> Answer<Vec<(KeySnapshot, KeyUsageSnapshot)>> {
        let (since, limit) = (decode::time_to_bytes(since), i64::from(limit).to_be_bytes());
        let values = [bytes(tenant_id), Some(&since[..]), bytes(tenant_id), Some(&limit)];
        let rows = self.query(&sql::PAGE_WITH_USAGE, values);
        let key = |row| (rows.key_of(tenant_id.to_string(), row, 1), rows.usage(row, 12));
        Answer::Peer((0..rows.len()).map(key).collect())
    }

    fn by_prefix(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let Prefix { tenant_id, text, end } = prefix;
        let limit = i64::from(limit).to_be_bytes();
        let values = [bytes(tenant_id), bytes(text), bytes(end), Some(&limit), bytes(tenant_id)];
        let rows = self.query(&sql::BY_PREFIX, values);
        Answer::Peer((0..rows.len()).map(|row| rows.key(row)).collect())
    }

    fn by_prefix_of_any_tenant(&mut self, prefix: &Prefix, limit: u32) -> Answer<Vec<KeySnapshot>> {
        let limit = i64::from(limit).to_be_bytes();
        let values = [bytes(&prefix.text), bytes(&prefix.end), Some(&limit)];
        let rows = self.query(&sql::BY_PREFIX_OF_ANY_TENANT, values);
        Answer::Peer((0..rows.len()).map(|row| rows.key(row)).collect())
    }

    fn count(&mut self, tenant_id: &TenantId) -> Answer<i64> {
        Answer::Peer(decode::int8(self.query(&sql::COUNT, [bytes(tenant_id)]).get(0, 0).unwrap()))
    }

    fn count_up_to(&mut self, tenant_id: &TenantId, bound: u32) -> Answer<i64> {
        let bound = i64::from(bound).to_be_bytes();
        let rows = self.query(&sql::COUNT_UP_TO, [bytes(tenant_id), Some(&bound)]);
        Answer::Peer(decode::int8(rows.get(0, 0).unwrap()))
    }

    fn usage(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        since: DateTime<Utc>,
    ) -> Answer<KeyUsageSnapshot> {
        let since = decode::time_to_bytes(since);
        Answer::Peer(self.query(&sql::USAGE, [bytes(tenant_id), bytes(key_id), Some(&since)]).usage(0, 0))
    }

    fn series(
        &mut self,
        tenant_id: &TenantId,
        key_id: &KeyId,
        hours: &[DateTime<Utc>],
    ) -> Answer<Vec<UsageBucket>> {
        let boundaries = decode::times_to_bytes(hours.iter().copied());
        let rows = self.query(&sql::SERIES, [bytes(tenant_id), bytes(key_id), Some(&boundaries)]);
        Answer::Peer(
            (0..).zip(&hours[1..]).zip(hours).map(|((row, _), start)| (*start, rows.usage(row, 0))).collect(),
        )
    }

    fn freeze(&mut self, tenant_id: &TenantId, key_id: &KeyId, now: DateTime<Utc>) -> Answer<KeySnapshot> {
        self.simple(c"BEGIN");
        let key = self.query(&sql::LOCK, [bytes(tenant_id), bytes(key_id)]).key(0);
        let (now, revision) = (decode::time_to_bytes(now), key.revision.to_be_bytes());
        let values =
            [Some(&[1][..]), Some(&now), None, None, bytes(&key.tenant_id), bytes(&key.id), Some(&revision)];
        let key = self.query(&sql::FREEZE, values).key(0);
        self.simple(c"COMMIT");
        Answer::Peer(key)
    }
    fn update(&mut self, tenant_id: &TenantId, key_id: &KeyId, name: &str, rpm: i32) -> Answer<KeySnapshot> {
        self.simple(c"BEGIN");
        let key = self.query(&sql::LOCK, [bytes(tenant_id), bytes(key_id)]).key(0);
        let (set, keep) = (Some(&[1][..]), Some(&[0][..]));
        let (rpm, revision) = (rpm.to_be_bytes(), key.revision.to_be_bytes());
        let values = [
            set,
            bytes(&name),
            keep,
            None,
            keep,
            None,
            set,
            Some(&rpm[..]),
            keep,
            None,
            keep,
            None,
            bytes(&key.tenant_id),
            bytes(&key.id),
            Some(&revision),
        ];
        let key = self.query(&sql::UPDATE, values).key(0);
        self.simple(c"COMMIT");
        Answer::Peer(key)
    }

    fn record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64> {
        let (key_ids, counts, times) = arrays(uses);
        let tenant_id = bytes(&uses[0].tenant_id);
        let values = [Some(&key_ids[..]), Some(&counts), Some(&times), tenant_id, tenant_id];
        Answer::Peer(self.query(&sql::RECORD_USES, values).changed())
    }

    fn try_record_uses(&mut self, uses: &[KeyUse]) -> Answer<i64> {
        let (key_ids, counts, times) = arrays(uses);
        let tenant_id = bytes(&uses[0].tenant_id);
        let values = [Some(&key_ids[..]), Some(&counts), Some(&times), tenant_id, tenant_id, tenant_id];
        Answer::Peer(self.query(&sql::TRY_RECORD_USES, values).len().into())
    }
}
