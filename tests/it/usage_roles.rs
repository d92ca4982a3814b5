//! Usage and the existing service: the roles that write and count, and changes of its schema.

use api_keys_driver::KeysDriver;
use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;

use crate::support::usage::{assert_exact, call, changes, fill, roll_up};
use crate::support::{at, eventually, migrated, migrated_apart};

#[test]
fn writers_need_no_right_on_the_usage_tables_and_cannot_use_the_function() {
    let (_database, mut conn) = migrated();
    call(&mut conn, "one", "2026-03-02T12:20:00Z", "1");
    conn.batch_execute(
        "DO $$ BEGIN CREATE ROLE usage_writer; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
         GRANT INSERT, UPDATE, DELETE, SELECT ON proxy_calls TO usage_writer;
         REVOKE ALL ON SEQUENCE usage_frontier FROM PUBLIC;
         SELECT setval('usage_frontier', 5000000000);
         CREATE SCHEMA own; GRANT ALL ON SCHEMA own TO usage_writer;
         SET ROLE usage_writer",
    )
    .unwrap();
    call(&mut conn, "late", "2026-03-02T12:20:00Z", "1");
    conn.batch_execute(
        "UPDATE proxy_calls SET cost_cents = 2 WHERE id = 'late'; DELETE FROM proxy_calls WHERE id = 'one'",
    )
    .unwrap();
    let misuse = conn.batch_execute(
        "CREATE TABLE own.proxy_calls (id text);
         CREATE TRIGGER misuse AFTER INSERT ON own.proxy_calls FOR EACH ROW EXECUTE FUNCTION public.proxy_calls_tell_usage()",
    );
    assert!(misuse.unwrap_err().to_string().starts_with("permission denied for function"));
    conn.batch_execute("RESET ROLE; DROP TABLE IF EXISTS own.proxy_calls; DROP OWNED BY usage_writer")
        .unwrap();
    assert_eq!(changes(&mut conn), 4);
}

#[test]
fn a_role_that_does_not_see_all_calls_must_not_count() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    conn.batch_execute(
        "DO $$ BEGIN CREATE ROLE usage_half_blind; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
         GRANT ALL ON ALL TABLES IN SCHEMA public TO usage_half_blind;
         GRANT ALL ON SEQUENCE usage_frontier TO usage_half_blind;
         CREATE POLICY own_key ON proxy_calls TO usage_half_blind USING (api_key_id = 'key');
         ALTER TABLE proxy_calls ENABLE ROW LEVEL SECURITY; SET ROLE usage_half_blind",
    )
    .unwrap();
    let mut keys = KeysDriver::new(&mut conn);
    for refused in [
        keys.roll_up_usage(at("2026-03-03T00:00:00Z"), 10).map(|_| ()),
        keys.recount_usage(at("2026-03-03T00:00:00Z")).map(|_| ()),
    ] {
        let why = std::error::Error::source(&refused.unwrap_err()).unwrap().to_string();
        assert!(why.contains("row-level security hides calls"), "{why}");
    }
    conn.batch_execute("RESET ROLE; DROP OWNED BY usage_half_blind").unwrap();
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    assert_exact(&mut conn);
}

#[test]
fn the_service_may_rename_the_schema_and_alter_the_columns() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    conn.batch_execute(
        "ALTER SCHEMA public RENAME TO \"the service's\"; SET search_path = \"the service's\"; CREATE SCHEMA public;
         ALTER TABLE proxy_calls ALTER COLUMN cost_cents TYPE numeric(14, 6), ALTER COLUMN tenant_id TYPE text,
             ALTER COLUMN api_key_id TYPE text",
    )
    .unwrap();
    call(&mut conn, "late", "2026-03-02T12:20:00Z", "1");
    assert_exact(&mut conn);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    assert_exact(&mut conn);
}

#[test]
fn the_type_of_created_at_can_be_altered_while_the_trigger_is_dropped() {
    let (_database, mut conn) = migrated_apart();
    fill(&mut conn);
    roll_up(&mut conn, "2026-03-02T12:20:00Z");
    let alter = "ALTER TABLE proxy_calls ALTER COLUMN created_at TYPE timestamptz(3)";
    let refused = conn.batch_execute(alter).unwrap_err().to_string();
    assert!(refused.starts_with("cannot alter type of a column used in a trigger definition"), "{refused}");

    // As docs/usage.md has it.
    conn.batch_execute(&format!(
        "DO $$
         DECLARE
             tell text := (SELECT pg_get_triggerdef(oid) FROM pg_trigger
                 WHERE tgrelid = 'proxy_calls'::regclass AND tgname = 'proxy_calls_tell_late_insert');
         BEGIN
             DROP TRIGGER proxy_calls_tell_late_insert ON proxy_calls;
             {alter};
             EXECUTE tell;
         END
         $$"
    ))
    .unwrap();
    call(&mut conn, "late", "2026-03-02T12:16:00Z", "1");
    assert_eq!(changes(&mut conn), 1, "the trigger records it again");
    let mut from = DateTime::<Utc>::MIN_UTC;
    eventually("all is counted again", || {
        let step = KeysDriver::new(&mut conn).recount_usage(from).unwrap().unwrap();
        from = step.recounted_to;
        !step.is_behind
    });
    assert_exact(&mut conn);
    roll_up(&mut conn, "2026-03-03T00:00:00Z");
    assert_exact(&mut conn);
}
