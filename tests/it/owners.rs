//! The triggers have the rights of the owner of the tables, whoever migrates, and whatever objects existed before.

use std::fmt::Write;

use api_keys_driver::{Error, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use throwaway_postgres::Database;

use crate::migrations::lines;
use crate::support::{OTHER, TENANT, empty_apart};

/// A database whose tables belong to a role without superuser rights, migrated by a superuser. Returns the role.
fn migrated_by_a_superuser() -> (Database, PgConnection, String) {
    let (database, mut conn) = empty_apart();
    let role = lines(&mut conn, "SELECT 'service_of_' || current_database() AS line").remove(0);
    migrate(&mut conn).unwrap();
    let mut revert = api_keys_driver::Migrator::new().revert(&mut conn).unwrap();
    assert!(revert.pop().unwrap().ends_with("create_api_keys"));
    conn.batch_execute(&format!(
        "DROP TABLE IF EXISTS api_keys, proxy_calls;
         CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role};
         CREATE SCHEMA service AUTHORIZATION {role};
         CREATE TABLE caught (who text, how text); GRANT INSERT ON caught TO PUBLIC"
    ))
    .unwrap();
    conn.batch_execute(&format!("SET ROLE {role}")).unwrap();
    for step in ["001_create_api_keys", "002_create_proxy_calls"] {
        let path = format!("{}/migrations/0000-api-keys-driver-{step}/up.sql", env!("CARGO_MANIFEST_DIR"));
        conn.batch_execute(&std::fs::read_to_string(path).unwrap()).unwrap();
    }
    conn.batch_execute("RESET ROLE").unwrap();
    migrate(&mut conn).unwrap();
    (database, conn, role)
}

const OURS: &str = "
    SELECT format('%s %s', 'function', p.oid::regprocedure) AS name, proowner AS owner
    FROM pg_proc AS p WHERE pronamespace = 'public'::regnamespace
    UNION ALL
    SELECT format('%s %s', CASE relkind WHEN 'S' THEN 'sequence' ELSE 'table' END, relname), relowner
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')
        AND relname NOT IN ('__diesel_schema_migrations', 'caught')";

#[test]
fn objects_that_a_superuser_migrates_belong_to_the_owner_of_the_tables() {
    let (_database, mut conn, role) = migrated_by_a_superuser();
    let others = format!("SELECT name AS line FROM ({OURS}) AS ours WHERE owner <> '{role}'::regrole");
    assert_eq!(lines(&mut conn, &others), [""; 0]);
    let all = lines(&mut conn, &format!("SELECT name AS line FROM ({OURS}) AS ours"));
    assert!(all.len() > 14, "{all:?}");
    assert_eq!(check(&mut conn).unwrap().obstacles, []);
}

/// A type whose conversions report who runs them.
fn trapped_type(of: &str, values: &str) -> String {
    let mut sql = format!("CREATE TYPE service.{of} AS ENUM ({values});");
    for (index, to) in
        ["json", "text", "varchar", "boolean", "bigint", "timestamptz", "numeric"].iter().enumerate()
    {
        let answer = match *to {
            "json" => "'{}'",
            "boolean" => "true",
            "bigint" | "numeric" => "1",
            "timestamptz" => "'2026-01-01Z'",
            _ => "'text'",
        };
        write!(
            sql,
            "CREATE FUNCTION service.{of}_{index}(service.{of}) RETURNS {to} LANGUAGE plpgsql AS $$
                 BEGIN INSERT INTO public.caught VALUES (current_user, '{of} to {to}'); RETURN {answer}; END $$;
             CREATE CAST (service.{of} AS {to}) WITH FUNCTION service.{of}_{index} AS IMPLICIT;"
        )
        .unwrap();
    }
    sql
}

#[test]
fn a_table_owner_does_not_get_the_rights_of_a_superuser_who_migrated() {
    let (_database, mut conn, role) = migrated_by_a_superuser();
    conn.batch_execute(&format!(
        "SET ROLE {role};
         {}
         ALTER TABLE api_keys ADD COLUMN trap service.word DEFAULT 'a';
         ALTER TABLE api_keys ALTER COLUMN freeze_reason TYPE service.word USING NULL;
         INSERT INTO api_keys (id, tenant_id, name, key_prefix, key_hash, created_at)
             VALUES ('key', '{TENANT}', 'a', 'sk', 'hash', now());
         UPDATE api_keys SET trap = 'b', name = 'c';
         UPDATE api_keys SET trap = 'a';
         UPDATE api_keys SET is_frozen = true, frozen_at = now(), freeze_reason = 'b';
         UPDATE api_keys SET tenant_id = '{OTHER}';
         DELETE FROM api_keys;
         RESET ROLE",
        trapped_type("word", "'a', 'b'")
    ))
    .unwrap();
    let caught = lines(&mut conn, "SELECT DISTINCT who AS line FROM caught");
    assert_eq!(caught, [role], "the conversions ran, and only with their owner's rights");
}

#[test]
fn objects_that_an_unrelated_role_owns_are_reported_and_refused() {
    let (_database, mut conn, _) = migrated_by_a_superuser();
    let neighbour = lines(&mut conn, "SELECT 'neighbour_of_' || current_database() AS line").remove(0);
    conn.batch_execute(&format!("CREATE ROLE {neighbour}")).unwrap();
    let planted = format!(
        "SELECT name AS line FROM ({OURS}) AS ours
         WHERE name NOT IN ('table api_keys', 'table proxy_calls', 'sequence api_key_events_id_seq',
                            'sequence usage_changes_id_seq') ORDER BY 1"
    );
    let planted = lines(&mut conn, &planted);
    assert!(planted.len() > 12, "{planted:?}");
    for object in &planted {
        conn.batch_execute("BEGIN").unwrap();
        let alter = object.replace("sequence", "table");
        conn.batch_execute(&format!("ALTER {alter} OWNER TO {neighbour}; COMMIT")).unwrap();
        // As if it had existed before the step that creates it.
        conn.batch_execute(
            "CREATE TABLE recorded AS SELECT * FROM __diesel_schema_migrations;
             DELETE FROM __diesel_schema_migrations WHERE version > '0000apikeysdriver2'",
        )
        .unwrap();
        let name = format!("{} {}", object.split(' ').next().unwrap(), object.split_once(' ').unwrap().1);
        let refused = migrate(&mut conn).unwrap_err();
        let Error::NotReady(report) = refused else { panic!("{object}: {refused:?}") };
        let names: Vec<_> = report.obstacles.iter().map(|obstacle| obstacle.name.as_str()).collect();
        assert_eq!(names, [format!("owner of {name}")], "{report}");
        conn.batch_execute(&format!(
            "INSERT INTO __diesel_schema_migrations SELECT * FROM recorded ON CONFLICT DO NOTHING;
             DROP TABLE recorded; ALTER {alter} OWNER TO CURRENT_USER"
        ))
        .unwrap();
        assert_eq!(check(&mut conn).unwrap().obstacles, [], "a superuser may own it: {object}");
    }
}

#[test]
fn a_view_with_the_name_of_the_table_is_refused_before_it_is_read() {
    let (_database, mut conn) = empty_apart();
    let role = lines(&mut conn, "SELECT 'neighbour_of_' || current_database() AS line").remove(0);
    conn.batch_execute(&format!(
        "CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role};
         CREATE SEQUENCE caught; GRANT USAGE ON SEQUENCE caught TO PUBLIC;
         SET ROLE {role};
         CREATE FUNCTION trap() RETURNS timestamptz LANGUAGE plpgsql AS
             $$ BEGIN PERFORM nextval('public.caught'); RETURN NULL; END $$;
         CREATE VIEW api_keys AS SELECT 'id'::varchar AS id, 'hash'::varchar AS key_hash, trap() AS created_at;
         RESET ROLE"
    ))
    .unwrap();
    let refused = migrate(&mut conn).unwrap_err();
    assert!(matches!(refused, Error::NotReady(_)), "{refused:?}");
    assert_eq!(
        lines(&mut conn, "SELECT is_called::text AS line FROM caught"),
        ["false"],
        "the view was read"
    );
}
