//! Every way to write a key is recorded by its effect on the row: the newest event of each key says what the table says.

use api_keys_driver::{DeniedKeys, KeyId, TenantId};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use throwaway_postgres::Database;

use crate::support::{KeyRow, TENANT, migrated_apart, wait_for_open_transactions};

fn lines(conn: &mut PgConnection, sql: &str) -> Vec<String> {
    diesel::dsl::sql::<Text>(sql).load(conn).unwrap()
}

/// Compares the newest event of each name with the table, and a cache that follows them.
fn assert_told(cache: &mut DeniedKeys, conn: &mut PgConnection, after: &str) {
    let differing = lines(
        conn,
        "WITH newest AS (
             SELECT DISTINCT ON (tenant_id, key_id) * FROM api_key_events
             ORDER BY tenant_id, key_id, revision DESC, transaction_id, id
         )
         SELECT concat_ws(' ', coalesce(k.id, e.key_id), e.kind, e.revision, k.revision)
         FROM newest AS e FULL JOIN api_keys AS k ON k.tenant_id = e.tenant_id AND k.id = e.key_id
         WHERE (k.id IS NULL AND e.kind <> 'deleted')
            OR (k.id IS NOT NULL AND (e.kind = 'deleted', e.revision, e.is_frozen, e.status, e.expires_at)
                IS DISTINCT FROM (false, k.revision, k.is_frozen, k.status::text, k.expires_at))",
    );
    assert_eq!(differing, [""; 0], "{after}");
    wait_for_open_transactions(conn);
    cache.catch_up(conn).unwrap();
    let denied = "SELECT id::text FROM api_keys WHERE is_frozen OR status <> 'active' ORDER BY 1";
    let gone = "SELECT DISTINCT key_id FROM api_key_events AS e
        WHERE NOT EXISTS (SELECT FROM api_keys WHERE tenant_id = e.tenant_id AND id = e.key_id)";
    let denied: Vec<_> = lines(conn, denied).into_iter().chain(lines(conn, gone)).collect();
    assert!(denied.iter().all(|id| cache.contains(&TenantId::from(TENANT), &KeyId::from(&**id))), "{after}");
    assert_eq!(cache.len(), denied.len(), "{after}: {denied:?}, {cache:?}");
}

fn with_keys() -> (Database, PgConnection) {
    let (database, mut conn) = migrated_apart();
    for id in ["a", "b", "c"] {
        KeyRow { id, ..KeyRow::default() }.insert(&mut conn);
    }
    (database, conn)
}

#[test]
fn every_statement_that_writes_a_key_is_recorded_by_its_effect() {
    let (_database, mut conn) = with_keys();
    let mut cache = DeniedKeys::seed(&mut conn).unwrap();
    let columns = "(id, tenant_id, name, key_prefix, key_hash, revision)";
    for sql in [
        format!(
            "INSERT INTO api_keys {columns} VALUES ('a', '{TENANT}', '', '', 'ha', 9)
             ON CONFLICT (id) DO UPDATE SET is_frozen = true, revision = excluded.revision"
        ),
        format!(
            "INSERT INTO api_keys {columns} VALUES ('a', '{TENANT}', '', '', 'ha', 9), ('d', '{TENANT}', '', '', 'hd', 9)
             ON CONFLICT DO NOTHING"
        ),
        format!(
            "COPY api_keys {columns} FROM PROGRAM 'echo e,{TENANT},copied,p,he,7' (FORMAT csv)"
        ),
        "BEGIN; UPDATE api_keys SET is_frozen = true WHERE id = 'b'; SAVEPOINT s; DELETE FROM api_keys WHERE id = 'b';
         UPDATE api_keys SET status = 'revoked'; ROLLBACK TO s; UPDATE api_keys SET name = 'x' WHERE id = 'b'; COMMIT"
            .into(),
        "DO $$ BEGIN UPDATE api_keys SET status = 'revoked' WHERE id = 'b'; RAISE 'x'; EXCEPTION WHEN OTHERS THEN
             UPDATE api_keys SET is_frozen = false WHERE id = 'b'; END $$"
            .into(),
        "CREATE VIEW shown AS SELECT * FROM api_keys WHERE NOT is_synthetic;
         UPDATE shown SET is_frozen = true WHERE id = 'c'; DELETE FROM shown WHERE id = 'd'; DROP VIEW shown"
            .into(),
        "WITH gone AS (DELETE FROM api_keys WHERE id = 'c' RETURNING *)
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, is_frozen)
             SELECT 'f', tenant_id, name, '', key_hash, is_frozen FROM gone"
            .into(),
        "UPDATE api_keys AS one SET is_frozen = NOT two.is_frozen FROM api_keys AS two WHERE two.id <> one.id".into(),
        "BEGIN; ALTER TABLE api_keys ALTER COLUMN name TYPE text; UPDATE api_keys SET is_frozen = false; COMMIT".into(),
        "CREATE RULE logged AS ON UPDATE TO api_keys WHERE new.name = 'rule' DO ALSO
             DELETE FROM api_keys WHERE id = 'f';
         UPDATE api_keys SET name = 'rule', status = 'revoked' WHERE id = 'b'; DROP RULE logged ON api_keys"
            .into(),
        "UPDATE api_keys SET id = id || '2'".into(),
        "UPDATE api_keys SET expires_at = 'infinity', is_frozen = true, frozen_at = '-infinity'".into(),
    ] {
        conn.batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_told(&mut cache, &mut conn, &sql);
    }
    if lines(&mut conn, "SHOW server_version_num")[0].parse::<u32>().unwrap() >= 150_000 {
        let sql = format!(
            "MERGE INTO api_keys AS k USING (VALUES ('a2', false), ('b2', true), ('new', false)) AS v (id, goes) ON k.id = v.id
             WHEN MATCHED AND goes THEN DELETE
             WHEN MATCHED THEN UPDATE SET status = 'active', is_frozen = false
             WHEN NOT MATCHED THEN INSERT {columns} VALUES (v.id, '{TENANT}', '', '', v.id, 5)"
        );
        conn.batch_execute(&sql).unwrap();
        assert_told(&mut cache, &mut conn, &sql);
    }
    conn.batch_execute("TRUNCATE api_keys").unwrap();
    assert_told(&mut cache, &mut conn, "TRUNCATE");
}

/// Triggers of the service that write the row again, before or after it is recorded. The later event may have the lower
/// revision.
#[test]
fn what_triggers_of_the_service_do_to_the_same_key_is_recorded_too() {
    for (when, body, write) in [
        ("BEFORE INSERT OR UPDATE", "NEW.is_frozen := true; RETURN NEW;", "UPDATE api_keys SET last_used_at = now()"),
        (
            "AFTER UPDATE",
            "IF NEW.name = 'go' THEN UPDATE api_keys SET name = 'gone', is_frozen = true WHERE id = NEW.id; END IF;
             RETURN NULL;",
            "UPDATE api_keys SET name = 'go'",
        ),
        (
            "AFTER UPDATE",
            "DELETE FROM api_keys WHERE id = NEW.id; RETURN NULL;",
            "UPDATE api_keys SET name = 'go' WHERE id <> 'b'",
        ),
        ("BEFORE DELETE", "RETURN NULL;", "DELETE FROM api_keys"),
        (
            "BEFORE DELETE",
            "UPDATE api_keys SET status = 'revoked' WHERE id = OLD.id; RETURN NULL;",
            "DELETE FROM api_keys",
        ),
        (
            "AFTER DELETE",
            "INSERT INTO api_keys SELECT (OLD).*; RETURN NULL;",
            "UPDATE api_keys SET is_frozen = true; DELETE FROM api_keys WHERE id = 'a'",
        ),
    ] {
        let (_database, mut conn) = with_keys();
        let mut cache = DeniedKeys::seed(&mut conn).unwrap();
        conn.batch_execute(&format!(
            "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
             CREATE TRIGGER again {when} ON api_keys FOR EACH ROW EXECUTE FUNCTION again(); {write}"
        ))
        .unwrap();
        assert_told(&mut cache, &mut conn, body);
    }
}

#[test]
fn a_session_that_planned_for_a_few_keys_does_not_scan_them_when_there_are_many() {
    let (_database, mut conn) = with_keys();
    conn.batch_execute("ANALYZE api_keys, api_key_events").unwrap();
    conn.batch_execute(&format!(
        "BEGIN;
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash)
             SELECT n, '{TENANT}', '', '', n FROM generate_series(1, 500) AS n"
    ))
    .unwrap();
    let read = "SELECT concat_ws(' ', relname, seq_tup_read) FROM pg_stat_xact_user_tables
                WHERE seq_tup_read > 0 AND relname IN ('api_keys', 'api_key_events')";
    assert_eq!(lines(&mut conn, read), [""; 0]);
    let indexes = "SELECT indexrelid::regclass::text FROM pg_index
                   WHERE indrelid = 'api_keys'::regclass AND pg_stat_get_xact_numscans(indexrelid) > 0";
    assert_eq!(lines(&mut conn, indexes), ["api_keys_pkey"]);
}
