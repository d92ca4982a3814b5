//! Which writes the triggers record as a change, and which revision they set.

use api_keys_driver::schema::api_keys;
use api_keys_driver::{KeyEventSnapshot, KeyId, KeysDriver, Page, TenantId};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::support::events::named;
use crate::support::{KeyRow, OTHER, key, migrated_apart, other, tenant};

fn history(conn: &mut PgConnection, tenant_id: &TenantId, key_id: &KeyId) -> Vec<KeyEventSnapshot> {
    KeysDriver::new(conn).fetch_key_events(tenant_id, key_id, Page::default()).unwrap()
}

fn told(conn: &mut PgConnection, tenant_id: &TenantId, id: &str) -> Vec<(i64, String)> {
    let events = history(conn, tenant_id, &key(id));
    events.into_iter().map(|event| (event.revision, event.kind.into())).collect()
}

fn revision(conn: &mut PgConnection, id: &str) -> i64 {
    api_keys::table.find(id).select(api_keys::revision).get_result(conn).unwrap()
}

fn with_key() -> (Database, PgConnection) {
    let (database, mut conn) = migrated_apart();
    KeyRow::default().insert(&mut conn);
    (database, conn)
}

#[test]
fn the_trigger_sets_the_revision_whatever_the_writer_sends() {
    for sent in [i64::MIN, -1, 0, 2, 4_000, i64::MAX] {
        let (_database, mut conn) = with_key();
        conn.batch_execute(&format!(
            "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, created_at, revision)
                 SELECT 'sent', tenant_id, name, key_prefix, 'sent', created_at, {sent} FROM api_keys;
             INSERT INTO api_keys SELECT * FROM api_keys WHERE id = 'sent'
                 ON CONFLICT (id) DO UPDATE SET revision = {sent};
             UPDATE api_keys SET revision = {sent} WHERE id = 'sent'"
        ))
        .unwrap();
        assert_eq!(revision(&mut conn, "sent"), 1, "{sent}");
        conn.batch_execute(&format!("UPDATE api_keys SET revision = {sent}, name = 'x' WHERE id = 'sent'"))
            .unwrap();
        assert_eq!(revision(&mut conn, "sent"), 2, "{sent}");
        assert_eq!(told(&mut conn, &tenant(), "sent"), named(&[(1, "inserted"), (2, "changed")]), "{sent}");
    }
}

#[test]
fn the_highest_possible_revision_does_not_stop_changes() {
    let (_database, mut conn) = with_key();
    conn.batch_execute(
        "SET session_replication_role = replica;
         UPDATE api_keys SET revision = 9223372036854775807;
         RESET session_replication_role;
         UPDATE api_keys SET is_frozen = true;
         DELETE FROM api_keys",
    )
    .unwrap();
    KeyRow::default().insert(&mut conn);
    conn.batch_execute("TRUNCATE api_keys").unwrap();
    let lives = [(1, "inserted"), (i64::MAX, "deleted"), (i64::MAX, "inserted"), (i64::MAX, "deleted")];
    assert_eq!(told(&mut conn, &tenant(), "key"), named(&lives));
}

#[test]
fn revisions_of_an_id_that_is_used_again_continue_after_its_events() {
    let (_database, mut conn) = with_key();
    conn.batch_execute(
        "UPDATE api_keys SET name = 'x'; UPDATE api_keys SET is_frozen = true; DELETE FROM api_keys",
    )
    .unwrap();
    KeyRow::default().insert(&mut conn);
    let lives = [(1, "inserted"), (2, "changed"), (3, "frozen"), (4, "deleted"), (5, "inserted")];
    assert_eq!(told(&mut conn, &tenant(), "key"), named(&lives));
    assert_eq!(revision(&mut conn, "key"), 5);

    // The same id in another tenant is another key, whether it is inserted or moved there.
    conn.batch_execute("DELETE FROM api_keys").unwrap();
    KeyRow { tenant_id: OTHER, ..KeyRow::default() }.insert(&mut conn);
    assert_eq!(revision(&mut conn, "key"), 1);
    conn.batch_execute(&format!("UPDATE api_keys SET tenant_id = '{}'", crate::support::TENANT)).unwrap();
    assert_eq!(revision(&mut conn, "key"), 7);
}

#[test]
fn a_change_of_id_or_tenant_is_a_deletion_and_an_insertion() {
    for (change, tenant_id, id) in [
        (format!("tenant_id = '{OTHER}'"), other(), "key"),
        ("id = 'renamed'".to_owned(), tenant(), "renamed"),
        (format!("id = 'renamed', tenant_id = '{OTHER}'"), other(), "renamed"),
    ] {
        let (_database, mut conn) = with_key();
        KeyRow { id, tenant_id: tenant_id.as_str(), key_hash: Some("another"), ..KeyRow::default() }
            .insert_unless(id == "key", &mut conn);
        conn.batch_execute(
            "DELETE FROM api_keys WHERE key_hash = 'another'; UPDATE api_keys SET is_frozen = true",
        )
        .unwrap();
        let past = i64::from(id != "key") * 2;
        conn.batch_execute(&format!("UPDATE api_keys SET {change}, is_frozen = false, total_requests = 7"))
            .unwrap();

        let raised = 2.max(past) + 1;
        let old = [(1, "inserted"), (2, "frozen"), (raised, "deleted")];
        assert_eq!(told(&mut conn, &tenant(), "key"), named(&old), "{change}");
        let new = history(&mut conn, &tenant_id, &key(id)).pop().unwrap();
        assert_eq!((new.revision, new.kind.as_str(), new.is_frozen), (raised, "inserted", false), "{change}");
        assert_eq!(revision(&mut conn, id), raised, "{change}");
    }
}

impl KeyRow<'_> {
    fn insert_unless(&self, not: bool, conn: &mut PgConnection) {
        if !not {
            self.insert(conn);
        }
    }
}

#[test]
fn truncating_the_table_appends_a_deletion_for_every_key() {
    let (_database, mut conn) = with_key();
    KeyRow { id: "other", tenant_id: OTHER, is_frozen: true, ..KeyRow::default() }.insert(&mut conn);
    conn.batch_execute("TRUNCATE api_keys").unwrap();
    assert_eq!(told(&mut conn, &tenant(), "key"), named(&[(1, "inserted"), (2, "deleted")]));
    assert_eq!(told(&mut conn, &other(), "other"), named(&[(1, "inserted"), (2, "deleted")]));

    KeyRow::default().insert(&mut conn);
    assert_eq!(revision(&mut conn, "key"), 3);
    let refused = conn.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; TRUNCATE api_keys").unwrap_err();
    assert!(refused.to_string().contains("READ COMMITTED only"), "{refused}");
}

/// Records uses with the driver, and with the service's own statement.
fn use_key(conn: &mut PgConnection) {
    let once = api_keys_driver::KeyUse {
        tenant_id: tenant(),
        key_id: key("key"),
        count: 1,
        at: "2026-06-01T12:00:00Z".parse().unwrap(),
    };
    KeysDriver::new(conn).record_key_uses(&[once]).unwrap();
    conn.batch_execute(
        "UPDATE api_keys SET last_used_at = now(), total_requests = total_requests + 1;
         UPDATE api_keys SET last_used_at = clock_timestamp();
         UPDATE api_keys SET total_requests = 0",
    )
    .unwrap();
}

#[test]
fn a_use_is_not_a_change_despite_generated_columns_and_other_triggers() {
    let neighbours = [
        "ALTER TABLE api_keys ADD COLUMN busy boolean GENERATED ALWAYS AS (total_requests > 1) STORED",
        "ALTER TABLE api_keys ADD COLUMN lower_name text GENERATED ALWAYS AS (lower(name::text)) STORED",
        "ALTER TABLE api_keys ADD COLUMN updated_at timestamptz;
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN NEW.updated_at := clock_timestamp(); RETURN NEW; END';
         CREATE TRIGGER zz_touch BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION touch()",
        "ALTER TABLE api_keys ADD COLUMN \"modified on\" date, ADD COLUMN at_local timestamp;
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN NEW.\"modified on\" := clock_timestamp(); NEW.at_local := clock_timestamp(); RETURN NEW; END';
         CREATE TRIGGER a_touch BEFORE INSERT OR UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION touch()",
        "CREATE DOMAIN moment AS timestamptz;
         ALTER TABLE api_keys ALTER COLUMN last_used_at TYPE moment, ADD COLUMN updated_at timestamptz;
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN NEW.updated_at := clock_timestamp(); RETURN NEW; END';
         CREATE TRIGGER a_touch BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION touch()",
    ];
    for neighbour in neighbours {
        let (_database, mut conn) = with_key();
        conn.batch_execute(neighbour).unwrap();
        use_key(&mut conn);
        assert_eq!(told(&mut conn, &tenant(), "key"), named(&[(1, "inserted")]), "{neighbour}");
        assert_eq!(revision(&mut conn, "key"), 1, "{neighbour}");

        conn.batch_execute(
            "UPDATE api_keys SET is_frozen = true, frozen_at = now(), total_requests = total_requests + 1;
             UPDATE api_keys SET expires_at = '2027-01-01Z';
             UPDATE api_keys SET name = 'x', last_used_at = now()",
        )
        .unwrap();
        let changes = [(1, "inserted"), (2, "frozen"), (3, "expiry_set"), (4, "changed")];
        assert_eq!(told(&mut conn, &tenant(), "key"), named(&changes), "{neighbour}");
    }
}

#[test]
fn a_use_runs_only_the_trigger_that_compares() {
    let (_database, mut conn) = with_key();
    // Without this trigger, a revision that was increased stays so.
    conn.batch_execute("ALTER TABLE api_keys DISABLE TRIGGER \"~api_keys_number_update\"").unwrap();
    use_key(&mut conn);
    assert_eq!(revision(&mut conn, "key"), 1);
}

#[test]
fn a_time_of_the_service_is_a_change_unless_the_key_is_used() {
    let (_database, mut conn) = with_key();
    conn.batch_execute("ALTER TABLE api_keys ADD COLUMN reviewed_at timestamptz").unwrap();
    for (set, expected) in [
        ("reviewed_at = '2026-01-01Z'", 2),
        ("reviewed_at = '2026-01-02Z', total_requests = total_requests + 1", 2),
        ("reviewed_at = '2026-01-03Z', last_used_at = now()", 2),
        ("reviewed_at = NULL", 3),
    ] {
        conn.batch_execute(&format!("UPDATE api_keys SET {set}")).unwrap();
        assert_eq!(revision(&mut conn, "key"), expected, "{set}");
    }
}

#[test]
fn a_generated_column_of_a_domain_that_refuses_null_stops_no_write() {
    let (_database, mut conn) = with_key();
    conn.batch_execute(
        "CREATE DOMAIN label AS text NOT NULL;
         ALTER TABLE api_keys ADD COLUMN lower_name label GENERATED ALWAYS AS (lower(name::text)) STORED,
             ADD COLUMN updated_at timestamptz",
    )
    .unwrap();
    use_key(&mut conn);
    conn.batch_execute("UPDATE api_keys SET updated_at = now(), last_used_at = now(), is_frozen = true")
        .unwrap();
    assert_eq!(history(&mut conn, &tenant(), &key("key")).last().unwrap().kind.as_str(), "frozen");
    conn.batch_execute("UPDATE api_keys SET name = 'x', is_frozen = false, updated_at = now()").unwrap();
    let kinds: Vec<_> = told(&mut conn, &tenant(), "key").into_iter().map(|(_, kind)| kind).collect();
    assert!(kinds.ends_with(&["unfrozen".to_owned(), "changed".to_owned()]), "{kinds:?}");
}

#[test]
fn a_change_has_the_kind_of_the_state_that_the_key_is_in() {
    let (frozen, revoked) = ("is_frozen = true", "status = 'revoked'");
    for (state, change, expected) in [
        (frozen, "frozen_at = now()", &["frozen"][..]),
        (frozen, "frozen_by = 'x'", &["frozen"]),
        (frozen, "freeze_reason = 'x'", &["frozen"]),
        (frozen, "revoked_reason = 'x'", &["changed"]),
        (revoked, "revoked_at = now()", &["revoked"]),
        (revoked, "revoked_reason = 'x'", &["revoked"]),
        (revoked, "frozen_by = 'x'", &["changed"]),
        (revoked, "status = 'active'", &["changed"]),
        ("name = 'y'", "frozen_at = now()", &["changed"]),
        ("name = 'y'", "revoked_at = now()", &["changed"]),
        ("name = 'y'", "is_frozen = true, revoked_at = now()", &["frozen", "changed"]),
        ("name = 'y'", "status = 'revoked', frozen_at = now()", &["revoked", "changed"]),
        ("name = 'y'", "expires_at = now(), created_at = '2020-01-01Z'", &["expiry_set", "changed"]),
    ] {
        let (_database, mut conn) = with_key();
        conn.batch_execute(&format!(
            "ALTER TABLE api_keys ADD COLUMN is_usable boolean GENERATED ALWAYS AS (NOT is_frozen AND status = 'active') STORED;
             UPDATE api_keys SET {state}; UPDATE api_keys SET {change}"
        ))
        .unwrap();
        let kinds: Vec<_> =
            told(&mut conn, &tenant(), "key").into_iter().skip(2).map(|(_, kind)| kind).collect();
        assert_eq!(kinds, expected, "{state}, then {change}");
    }
}

#[test]
fn the_time_and_the_reason_of_one_kind_are_not_those_of_the_next() {
    let (_database, mut conn) = with_key();
    conn.batch_execute(
        "UPDATE api_keys SET status = 'revoked', revoked_at = '2020-01-01Z', revoked_reason = 'leaked',
             expires_at = '2021-01-01Z', is_frozen = true, frozen_at = '2022-01-01Z', frozen_by = 'ops'",
    )
    .unwrap();
    let events = history(&mut conn, &tenant(), &key("key"));
    let of = |kind: &str| events.iter().find(|event| event.kind.as_str() == kind).unwrap();
    assert_eq!((of("frozen").reason.as_deref(), of("frozen").actor.as_deref()), (None, Some("ops")));
    assert_eq!((of("revoked").reason.as_deref(), of("revoked").actor.as_deref()), (Some("leaked"), None));
    let expiry = of("expiry_set");
    assert_eq!((&expiry.reason, &expiry.actor, expiry.at), (&None, &None, expiry.recorded_at));
}

#[test]
fn a_change_by_a_trigger_of_the_service_is_a_change() {
    let (_database, mut conn) = with_key();
    conn.batch_execute(
        "CREATE FUNCTION quota() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF NEW.total_requests > 3 THEN NEW.status := ''revoked''; END IF; RETURN NEW; END';
         CREATE TRIGGER zzz_quota BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION quota();
         UPDATE api_keys SET total_requests = 3;
         UPDATE api_keys SET total_requests = 4",
    )
    .unwrap();
    assert_eq!(told(&mut conn, &tenant(), "key"), named(&[(1, "inserted"), (2, "revoked")]));
}

#[test]
fn changes_in_a_statement_that_also_records_a_use_are_recorded() {
    let (_database, mut conn) = with_key();
    conn.batch_execute("ALTER TABLE api_keys ADD COLUMN labels json, ADD COLUMN weight double precision")
        .unwrap();
    let columns = [
        ("user_id", "'u'"),
        ("name", "'x'"),
        ("key_prefix", "'sk-x'"),
        ("key_hash", "'other'"),
        ("permissions_json", "'[]'"),
        ("allowed_workers_json", "'[]'"),
        ("rate_limit_rpm", "1"),
        ("max_concurrent_runs", "1"),
        ("status", "'on hold'"),
        ("expires_at", "'2027-01-01Z'"),
        ("revoked_at", "'2027-01-01Z'"),
        ("revoked_reason", "'r'"),
        ("created_at", "'2025-01-01Z'"),
        ("frozen_at", "'2027-01-01Z'"),
        ("frozen_by", "'f'"),
        ("freeze_reason", "'f'"),
        ("is_synthetic", "true"),
        ("synthetic_scenario_id", "'s'"),
        ("is_frozen", "true"),
        ("labels", "'{}'"),
        ("weight", "1.5"),
    ];
    for (index, (column, value)) in (2..).zip(columns) {
        let also = "total_requests = total_requests + 1, last_used_at = clock_timestamp()";
        conn.batch_execute(&format!("UPDATE api_keys SET {column} = {value}, {also}")).unwrap();
        assert_eq!(revision(&mut conn, "key"), index, "{column}");
        assert_eq!(history(&mut conn, &tenant(), &key("key")).last().unwrap().revision, index, "{column}");
    }
}

/// Values that look alike as text or as JSON, with the settings of some session. A type's owner decides what it is as JSON.
#[test]
fn a_change_to_a_value_that_looks_the_same_is_a_change() {
    let columns =
        "ADD COLUMN weight float8 DEFAULT 1.25, ADD COLUMN labels jsonb, ADD COLUMN mood mood DEFAULT 'good',
         ADD COLUMN updated_at timestamptz";
    for change in ["weight = 1.26", "labels = 'null'", "mood = 'bad'"] {
        for (also, kinds) in [
            ("total_requests = total_requests", &["changed"][..]),
            ("total_requests = total_requests + 1, updated_at = clock_timestamp()", &["changed"]),
            ("is_frozen = true, updated_at = clock_timestamp()", &["frozen", "changed"]),
        ] {
            let (_database, mut conn) = with_key();
            conn.batch_execute(&format!(
                "CREATE TYPE mood AS ENUM ('good', 'bad');
                 CREATE TABLE ran (by text);
                 CREATE FUNCTION as_json(mood) RETURNS json LANGUAGE plpgsql AS
                     'BEGIN INSERT INTO public.ran VALUES (current_user); RETURN ''1''; END';
                 CREATE CAST (mood AS json) WITH FUNCTION as_json(mood);
                 ALTER TABLE api_keys {columns};
                 SET extra_float_digits = -15;
                 UPDATE api_keys SET {change}, {also}"
            ))
            .unwrap();
            let expected = kinds.iter().map(|kind| (2, *kind));
            let expected: Vec<_> = [(1, "inserted")].into_iter().chain(expected).collect();
            assert_eq!(told(&mut conn, &tenant(), "key"), named(&expected), "{change}, {also}");
            assert_eq!(revision(&mut conn, "key"), 2, "{change}, {also}");
            let ran = diesel::sql_query("SELECT FROM ran").execute(&mut conn);
            assert_eq!(ran, Ok(0), "the function of a cast ran: {change}, {also}");
        }
    }
}
