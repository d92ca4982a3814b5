//! Revisions and events in a database whose tables, rows and writers existed before this crate.

use api_keys_driver::schema::{api_key_events, api_keys};
use api_keys_driver::{KeysDriver, MIGRATIONS, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_migrations::MigrationHarness;
use throwaway_postgres::Database;

use crate::support::events::{history, kinds, named};
use crate::support::{TENANT, at, existing_service};

/// An empty database and the existing service's database before the migrations of events, each with two keys.
fn databases() -> Vec<(&'static str, Database, PgConnection)> {
    let empty = throwaway_postgres::empty().unwrap();
    let mut conn = empty.connect().unwrap();
    migrate_to_before_events(&mut conn);
    let mut databases = vec![("empty", empty, conn)];
    if let Some((service, conn)) = existing_service() {
        databases.push(("service", service, conn));
    }
    for (_, _, conn) in &mut databases {
        conn.batch_execute(&format!(
            "INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, is_frozen, frozen_at, frozen_by)
             VALUES ('old', '{TENANT}', 'Old', 'sk', 'old', false, NULL, NULL),
                    ('ice', '{TENANT}', 'Ice', 'sk', 'ice', true, '2026-01-01Z', 'ops')"
        ))
        .unwrap();
    }
    databases
}

pub(crate) fn migrate_to_before_events(conn: &mut PgConnection) {
    let pending = conn.pending_migrations(MIGRATIONS).unwrap();
    for migration in pending {
        if !migration.name().to_string().contains("-driver-2") {
            conn.run_migration(&migration).unwrap();
        }
    }
}

fn revert_all(conn: &mut PgConnection) {
    conn.revert_all_migrations(MIGRATIONS).unwrap();
}

#[test]
fn existing_keys_start_without_events_whether_frozen_or_not() {
    for (name, _database, mut conn) in databases() {
        migrate(&mut conn).unwrap();
        assert_eq!(api_key_events::table.count().get_result(&mut conn), Ok(0), "{name}");
        conn.batch_execute("UPDATE api_keys SET is_frozen = false").unwrap();
        assert_eq!(kinds(&mut conn, "ice"), named(&[(1, "unfrozen")]), "{name}");
    }
}

#[test]
fn writes_of_the_service_continue_and_are_recorded() {
    for (name, _database, mut conn) in databases() {
        migrate(&mut conn).unwrap();
        // As the service writes: by name, only the columns that it knows.
        conn.batch_execute(&format!(
            "INSERT INTO api_keys (id, tenant_id, user_id, name, key_prefix, key_hash, permissions_json,
                 allowed_workers_json, rate_limit_rpm, max_concurrent_runs, status, expires_at, revoked_at,
                 revoked_reason, last_used_at, total_requests, created_at, frozen_at, frozen_by, freeze_reason,
                 is_synthetic, synthetic_scenario_id, is_frozen)
             VALUES ('new', '{TENANT}', NULL, 'New', 'sk-live-wxyz', 'new', NULL, NULL, NULL, NULL, 'active', NULL,
                 NULL, NULL, NULL, 0, '2026-02-01Z', NULL, NULL, NULL, false, NULL, false);
             UPDATE api_keys SET last_used_at = now(), total_requests = total_requests + 1 WHERE id = 'new';
             UPDATE api_keys SET is_frozen = true, frozen_at = '2026-02-02Z', frozen_by = 'admin',
                 freeze_reason = 'abuse' WHERE id = 'new';
             UPDATE api_keys SET status = 'revoked', revoked_at = '2026-02-03Z', revoked_reason = 'rotated'
                 WHERE id = 'new';
             UPDATE api_keys SET status = 'active' WHERE id = 'new'"
        ))
        .unwrap();

        let events = history(&mut conn, "new");
        let told: Vec<_> = events
            .iter()
            .map(|event| (event.kind.as_str(), event.actor.as_deref(), event.reason.as_deref()))
            .collect();
        let expected = [
            ("inserted", None, None),
            ("frozen", Some("admin"), Some("abuse")),
            ("revoked", None, Some("rotated")),
            ("changed", None, None),
        ];
        assert_eq!(told, expected, "{name}");
        let times: Vec<_> = events.iter().take(3).map(|event| event.at).collect();
        let given = ["2026-02-01T00:00:00Z", "2026-02-02T00:00:00Z", "2026-02-03T00:00:00Z"];
        assert_eq!(times, given.map(at), "{name}");
        assert_eq!(events.iter().map(|event| event.revision).collect::<Vec<_>>(), [1, 2, 3, 4], "{name}");
    }
}

#[test]
fn the_service_can_alter_its_table_and_changes_of_new_columns_are_recorded() {
    for (name, _database, mut conn) in databases() {
        migrate(&mut conn).unwrap();
        conn.batch_execute(
            "ALTER TABLE api_keys ALTER COLUMN name TYPE varchar(200), ALTER COLUMN status TYPE text,
                 ALTER COLUMN key_prefix TYPE varchar(16);
             ALTER TABLE api_keys ADD COLUMN labels json;
             UPDATE api_keys SET labels = '{}' WHERE id = 'old';
             UPDATE api_keys SET labels = '{}', total_requests = 7 WHERE id = 'old';
             ALTER TABLE api_keys DROP COLUMN labels;
             UPDATE api_keys SET name = 'x' WHERE id = 'old'",
        )
        .unwrap();
        assert_eq!(kinds(&mut conn, "old"), named(&[(1, "changed"), (2, "changed")]), "{name}");
    }
}

#[test]
fn keys_that_are_deleted_by_a_cascade_are_recorded() {
    let Some((_database, mut conn)) = existing_service() else { return };
    migrate(&mut conn).unwrap();
    conn.batch_execute(&format!(
        "INSERT INTO users (id, clerk_user_id, email) VALUES ('user', 'user', 'user');
         INSERT INTO api_keys (id, tenant_id, user_id, name, key_prefix, key_hash)
         VALUES ('key', '{TENANT}', 'user', 'Key', 'sk', 'key');
         DELETE FROM users;
         DELETE FROM tenants"
    ))
    .unwrap();
    assert_eq!(kinds(&mut conn, "key"), named(&[(1, "inserted"), (2, "changed"), (3, "deleted")]));
}

#[test]
fn a_revert_keeps_keys_and_events_and_later_revisions_are_higher() {
    for (name, _database, mut conn) in databases() {
        migrate(&mut conn).unwrap();
        conn.batch_execute(
            "UPDATE api_keys SET name = 'x' WHERE id = 'old'; UPDATE api_keys SET name = 'y' WHERE id = 'old'",
        )
        .unwrap();

        revert_all(&mut conn);
        conn.batch_execute("UPDATE api_keys SET is_frozen = id = 'old'").unwrap();
        assert_eq!(api_keys::table.count().get_result(&mut conn), Ok(2), "{name}");

        migrate(&mut conn).unwrap();
        let revisions: Vec<i64> = api_keys::table.select(api_keys::revision).load(&mut conn).unwrap();
        assert_eq!(revisions, [3, 3], "{name}");
        conn.batch_execute("UPDATE api_keys SET name = 'z'").unwrap();
        assert_eq!(kinds(&mut conn, "ice").pop(), Some((4, "changed".into())), "{name}");
    }
}

#[test]
fn a_revert_of_a_database_without_keys_drops_everything() {
    let database = throwaway_postgres::empty().unwrap().prepare(migrate).unwrap();
    let mut conn = database.connect().unwrap();
    revert_all(&mut conn);
    let left = diesel::sql_query(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname ~ 'api_key'
         UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    );
    assert_eq!(left.execute(&mut conn).unwrap(), 0);
    migrate(&mut conn).unwrap();
    let mut keys = KeysDriver::new(&mut conn);
    assert!(keys.fetch_key_events_after(None, 1).unwrap().is_empty());
    assert_eq!(api_key_events::table.count().get_result(&mut conn), Ok(0));
}
