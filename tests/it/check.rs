//! `check` reports nothing on a migrated database, and each obstacle that it knows, one at a time.

mod blocks;
mod breaks;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;

use api_keys_driver::{Effect, Error, MIGRATIONS, Migrator, Obstacle, check, migrate};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, Text};
use diesel_migrations::MigrationHarness;
use throwaway_postgres::{Database, PrivateServer};

use self::blocks::BLOCKS;
use self::breaks::BREAKS;
use crate::migrations::{catalog, empty, lines, names};
use crate::support::{eventually, existing_service, existing_service_apart, partitioned_service};

#[derive(QueryableByName)]
struct Object {
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    table: String,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    definition: String,
    #[diesel(sql_type = Text)]
    flaw: String,
}

/// Every object in the schema that the migrations created, as `check` reads it.
fn objects(conn: &mut PgConnection) -> Vec<Object> {
    let relations = lines(
        conn,
        "SELECT relname::text AS line FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE '\\_\\_diesel%'",
    );
    let functions =
        lines(conn, "SELECT proname::text AS line FROM pg_proc WHERE pronamespace = 'public'::regnamespace");
    let indexes = lines(
        conn,
        "SELECT relname::text AS line FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid
         WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE '\\_\\_diesel%'
             AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)",
    );
    diesel::sql_query("SET search_path = pg_catalog").execute(conn).unwrap();
    let objects = diesel::sql_query(include_str!("../../src/check/catalog.sql"))
        .bind::<Text, _>("public")
        .bind::<Array<Text>, _>(relations)
        .bind::<Array<Text>, _>(indexes)
        .bind::<Array<Text>, _>(functions)
        .load(conn)
        .unwrap();
    diesel::sql_query("SET search_path = public").execute(conn).unwrap();
    objects
}

#[test]
fn the_list_of_what_the_migrations_create_is_up_to_date() {
    let (_database, mut conn) = empty();
    let mut made: BTreeMap<_, (String, String, String)> = BTreeMap::new();
    for migration in conn.pending_migrations(MIGRATIONS).unwrap() {
        conn.run_migration(&migration).unwrap();
        let name = migration.name().to_string();
        let title = name.split_once('_').unwrap().1;
        let mut now = BTreeMap::new();
        for Object { kind, table, name, definition, flaw } in objects(&mut conn) {
            let key = (kind, table, name);
            let definition = if flaw.is_empty() { definition } else { format!("{definition}, {flaw}") };
            let (created_by, defined_by) = match made.get(&key) {
                Some((created_by, defined_by, before)) if *before == definition => {
                    (created_by.clone(), defined_by.clone())
                }
                Some((created_by, ..)) => (created_by.clone(), title.to_owned()),
                None => (title.to_owned(), title.to_owned()),
            };
            now.insert(key, (created_by, defined_by, definition));
        }
        made = now;
    }
    let mut list = String::new();
    for ((kind, table, name), (created_by, defined_by, definition)) in made {
        writeln!(list, "{created_by}\t{defined_by}\t{kind}\t{table}\t{name}\t{definition}").unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/check/expected.tsv");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(path, &list).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(path).unwrap(),
        list,
        "write it with: UPDATE_EXPECTED=1 cargo test --test it the_list_of_what"
    );
}

/// Everything that `check` reported so far.
static SAID: Mutex<String> = Mutex::new(String::new());

/// The names of the obstacles and pending steps, with `!` for each level at which they block.
fn found(conn: &mut PgConnection) -> Vec<String> {
    let report = check(conn).unwrap();
    writeln!(SAID.lock().unwrap(), "{report}").unwrap();
    let pending = report.pending.iter().map(|step| format!("pending {}", step.split_once('_').unwrap().1));
    // One line represents all tables of an owner.
    let one_owner = |obstacle: &&Obstacle| {
        !obstacle.name.starts_with("ownership of ") || obstacle.name == "ownership of api_keys"
    };
    let obstacles = report.obstacles.iter().filter(one_owner).map(|obstacle| match obstacle.effect {
        Effect::BlocksMigration => format!("!! {}", obstacle.name),
        Effect::BlocksMethods => format!("! {}", obstacle.name),
        _ => obstacle.name.clone(),
    });
    pending.chain(obstacles).collect()
}

/// Breaks one thing after another on a migrated database. `check` reports exactly that each time.
fn break_each_thing(conn: &mut PgConnection) {
    for (sql, expected, fix) in BREAKS {
        assert_eq!(found(conn), [""; 0], "before {sql}");
        conn.batch_execute(sql).unwrap();
        assert_eq!(found(conn), *expected, "{sql}");
        if !fix.is_empty() {
            conn.batch_execute(fix).unwrap();
        }
        migrate(conn).unwrap();
    }
    assert_eq!(found(conn), [""; 0]);
}

/// Leaves an open and a prepared transaction, which are reported when they are ten seconds old.
fn leave_transactions_open(server: &mut PrivateServer) -> PgConnection {
    let mut conn = PgConnection::establish(&server.url()).unwrap();
    conn.batch_execute("ALTER SYSTEM SET max_prepared_transactions = 2").unwrap();
    drop(conn);
    server.stop().unwrap();
    server.start().unwrap();
    let mut old = PgConnection::establish(&server.url()).unwrap();
    old.batch_execute(
        "SET application_name = 'forgotten'; BEGIN; CREATE TABLE left_over (); PREPARE TRANSACTION 'left over';
         BEGIN; SELECT FROM pg_class LIMIT 1",
    )
    .unwrap();
    old
}

fn assert_old_transactions_are_named(server: &PrivateServer, mut old: PgConnection) {
    let mut conn = PgConnection::establish(&server.url()).unwrap();
    eventually("they are old", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        found(&mut conn).iter().filter(|line| line.contains("transaction ")).count() == 2
    });
    let names = found(&mut conn).join("\n");
    assert!(names.contains("prepared transaction left over"), "{names}");
    assert!(names.contains("application forgotten, idle in transaction since"), "{names}");
    old.batch_execute("COMMIT").unwrap();
    old.batch_execute("ROLLBACK PREPARED 'left over'").unwrap();
    assert!(!found(&mut conn).iter().any(|line| line.contains("transaction ")));
}

/// Breaks the server instead of the database.
fn break_the_server(server: &mut PrivateServer, database: &Database) {
    let mut conn = database.connect().unwrap();
    if conn.batch_execute("SET lc_messages = 'de_DE.utf8'").is_ok() {
        assert_eq!(found(&mut conn), ["lc_messages"]);
    } else {
        eprintln!("skipped: the server has no German locale");
        SAID.lock().unwrap().push_str(
            "some errors are recognized by their English messages, and this server's are in  SET lc_messages = 'C'",
        );
    }
    let name = lines(&mut conn, "SELECT current_database()::text AS line").remove(0);
    for (encoding, expected) in
        [("SQL_ASCII", ["encoding"].as_slice()), ("WIN1252", &["encoding"]), ("LATIN9", &[])]
    {
        conn.batch_execute(&format!(
            "CREATE DATABASE odd TEMPLATE template0 LOCALE 'C' ENCODING '{encoding}'"
        ))
        .unwrap();
        let mut odd = PgConnection::establish(&database.url().replace(&name, "odd")).unwrap();
        migrate(&mut odd).unwrap();
        assert_eq!(found(&mut odd), expected);
        drop(odd);
        conn.batch_execute("DROP DATABASE odd").unwrap();
    }
    drop(conn);

    server.stop().unwrap();
    server.set_standby(true).unwrap();
    server.start().unwrap();
    assert_eq!(found(&mut database.connect().unwrap()), ["! server"]);
    server.stop().unwrap();
    server.set_standby(false).unwrap();
    server.start().unwrap();
    assert_eq!(found(&mut database.connect().unwrap()), [""; 0]);
}

/// Breaks partitioned calls.
fn break_partitions() {
    let Some((database, mut conn)) = partitioned_service() else { return };
    migrate(&mut conn).unwrap();
    assert_eq!(found(&mut conn), [""; 0]);
    let mut rewriter = database.connect().unwrap();
    rewriter.batch_execute("BEGIN; LOCK TABLE calls_2025 IN ACCESS EXCLUSIVE MODE").unwrap();
    conn.batch_execute("SET lock_timeout = '1s'").unwrap();
    assert_eq!(found(&mut conn), [""; 0], "the lock of a partition is not waited for");
    rewriter.batch_execute("COMMIT").unwrap();
    for name in ["proxy_calls_tell_late_insert", "proxy_calls_tell_usage"] {
        for off in ["DISABLE", "ENABLE REPLICA"] {
            conn.batch_execute(&format!("ALTER TABLE calls_2026_01_b {off} TRIGGER {name}")).unwrap();
            assert_eq!(found(&mut conn), [format!("! trigger {name} on proxy_calls")], "{off}");
            let obstacle = check(&mut conn).unwrap().obstacles.remove(0);
            assert_eq!(obstacle.why, "it is disabled on calls_2026_01_b, so not every change is recorded");
            conn.batch_execute(&obstacle.action).unwrap();
            assert_eq!(found(&mut conn), [""; 0], "{}", obstacle.action);
        }
    }
    conn.batch_execute(
        "UPDATE pg_index SET indisvalid = false
         WHERE indexrelid = 'ix_proxy_calls_key_usage_calls_2025'::regclass",
    )
    .unwrap();
    assert_eq!(found(&mut conn), ["pending proxy_calls_key_usage", "index ix_proxy_calls_key_usage"]);
    migrate(&mut conn).unwrap();
    assert_eq!(found(&mut conn), [""; 0], "the invalid part is built again");
    conn.batch_execute(
        "ALTER TABLE calls_2025 REPLICA IDENTITY NOTHING; CREATE PUBLICATION calls FOR TABLE proxy_calls",
    )
    .unwrap();
    assert_eq!(found(&mut conn), ["! replica identity of proxy_calls"]);
    let obstacle = check(&mut conn).unwrap().obstacles.remove(0);
    conn.batch_execute(obstacle.action.split(',').next().unwrap()).unwrap();
    assert_eq!(found(&mut conn), [""; 0], "{}", obstacle.action);
    conn.batch_execute(
        "DROP PUBLICATION calls;
         DO $$ BEGIN
             EXECUTE (SELECT format('ALTER TABLE proxy_calls DROP CONSTRAINT %I', conname) FROM pg_constraint
                      WHERE conrelid = 'proxy_calls'::regclass AND contype = 'p');
         END $$;
         DROP TABLE calls_2025; CREATE FOREIGN DATA WRAPPER far; CREATE SERVER far FOREIGN DATA WRAPPER far;
         CREATE FOREIGN TABLE calls_2025 PARTITION OF proxy_calls FOR VALUES FROM (MINVALUE) TO ('2026-01-01Z')
             SERVER far",
    )
    .unwrap();
    assert_eq!(found(&mut conn), ["partitions of proxy_calls"]);
}

/// The longest fixed part of each text of the judges, if it has a space and is long enough to be recognized.
fn texts_of_the_judges() -> Vec<String> {
    let sources = [
        include_str!("../../src/check/judge.rs"),
        include_str!("../../src/check/judge/hindrances.rs"),
        include_str!("../../src/check/judge/names.rs"),
        include_str!("../../src/check/judge/objects.rs"),
        include_str!("../../src/check/judge/rights.rs"),
        include_str!("../../src/check/judge/surroundings.rs"),
    ];
    let mut texts = Vec::new();
    for source in sources {
        let code: Vec<_> =
            source.lines().map(str::trim_start).filter(|line| !line.starts_with("//")).collect();
        // A line that ends in a backslash continues in the next one.
        let code = code.join("\n").replace("\\\n", "").replace("\\\"", "\u{1}");
        for text in code.split('"').skip(1).step_by(2) {
            let fixed = text.split(['{', '}']).step_by(2).max_by_key(|fixed| fixed.len()).unwrap_or_default();
            if fixed.len() >= 12 && fixed.trim().contains(' ') {
                texts.push(fixed.replace('\u{1}', "\""));
            }
        }
    }
    texts
}

#[test]
fn each_obstacle_is_reported_alone_and_each_text_is_tested() {
    let (mut server, database, mut conn) = apart();
    migrate(&mut conn).unwrap();
    drop(conn);
    let old = leave_transactions_open(&mut server);
    break_each_thing(&mut database.connect().unwrap());
    take_each_name();
    block_each_step();
    block_an_owner();
    break_partitions();
    assert_old_transactions_are_named(&server, old);
    break_the_server(&mut server, &database);
    if existing_service().is_none() {
        return;
    }
    assert_what_the_existing_service_has_to_know();
    let said = SAID.lock().unwrap();
    let texts = texts_of_the_judges();
    assert!(texts.len() > 50, "{texts:#?}");
    let never: Vec<_> = texts.iter().filter(|text| !said.contains(text.as_str())).collect();
    assert!(never.is_empty(), "no test provokes these: {never:#?}");
}

/// A private server, whose roles and settings no other test sees.
fn apart() -> (PrivateServer, Database, PgConnection) {
    let server = PrivateServer::start_new().unwrap();
    let database = server.create_database().unwrap();
    let conn = database.connect().unwrap();
    (server, database, conn)
}

/// Creates an object with a name that a migration needs. The migrator reports it before it changes anything.
fn take_each_name() {
    for (sql, obstacle) in [
        ("ALTER TABLE api_keys ADD COLUMN revision integer", "!! column api_keys.revision"),
        ("ALTER TABLE api_keys ADD COLUMN revision bigint NOT NULL DEFAULT 0", "!! column api_keys.revision"),
        (
            "CREATE FUNCTION api_keys_number() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
            "!! function api_keys_number",
        ),
        (
            "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER \"~api_keys_number\" BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION touch()",
            "!! trigger ~api_keys_number on api_keys",
        ),
        ("CREATE TABLE api_key_events (id bigint)", "!! column api_key_events.actor"),
        ("CREATE INDEX ix_api_keys_tenant_newest_first ON users (email)", "!! index ix_api_keys_tenant_newest_first"),
        (
            "ALTER TABLE proxy_calls ADD CONSTRAINT proxy_calls_cost_cents_is_a_number CHECK (cost_cents > 0)",
            "!! constraint proxy_calls_cost_cents_is_a_number on proxy_calls",
        ),
        ("CREATE TABLE ix_api_keys_tenant_newest_first ()", "!! index ix_api_keys_tenant_newest_first"),
        (
            "ALTER TABLE api_keys RENAME TO plain;
             CREATE TABLE api_keys (LIKE plain INCLUDING DEFAULTS) PARTITION BY LIST (tenant_id)",
            "!! table api_keys",
        ),
        ("ALTER TABLE api_keys DROP COLUMN frozen_by", "!! column api_keys.frozen_by"),
        ("SET search_path = nowhere", "!! search_path"),
        (
            "CREATE SCHEMA calls; ALTER TABLE proxy_calls SET SCHEMA calls; SET search_path = public, calls",
            "!! search_path and proxy_calls",
        ),
    ] {
        let Some((_database, mut conn)) = existing_service() else { return };
        conn.batch_execute(sql).unwrap();
        let before = catalog(&mut conn);
        let found = found(&mut conn);
        assert!(found.iter().any(|line| line == obstacle), "{sql}: {found:#?}");
        let error = migrate(&mut conn).unwrap_err();
        assert!(matches!(error, Error::NotReady(_)), "{sql}: {error:?}");
        assert_eq!(catalog(&mut conn), before, "{sql}");
    }
}

/// Removes an obstacle to a step, after it was reported and nothing was changed.
fn block_each_step() {
    for (sql, name, fix) in BLOCKS {
        let Some((_database, mut conn)) = existing_service_apart() else { return };
        conn.batch_execute(sql).unwrap();
        let obstacle = blocking(&mut conn, name);
        conn.batch_execute(if fix.is_empty() { &obstacle.action } else { fix }).unwrap();
        let is_quoted = fix.starts_with("ALTER TABLE public.") && !fix.contains("RENAME");
        assert!(!is_quoted || obstacle.action.starts_with(fix.split(';').next().unwrap()), "{obstacle}");
        migrate(&mut conn).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let report = check(&mut conn).unwrap();
        assert!(report.is_clean(), "{sql}: {report}");
    }
}

/// The obstacle of a name. `migrate` refuses in its words, and changes nothing.
fn blocking(conn: &mut PgConnection, name: &str) -> Obstacle {
    let before = catalog(conn);
    found(conn);
    let mut obstacles = check(conn).unwrap().obstacles;
    obstacles.retain(|obstacle| obstacle.effect == Effect::BlocksMigration);
    let obstacle = obstacles.iter().find(|obstacle| obstacle.name == name);
    let obstacle = obstacle.unwrap_or_else(|| panic!("{name}: {obstacles:#?}")).clone();
    let error = migrate(conn).unwrap_err();
    assert!(matches!(error, Error::NotReady(_)), "{name}: {error:?}");
    assert!(error.to_string().contains(&obstacle.to_string()), "{error}");
    assert_eq!(catalog(conn), before, "{name}");
    obstacle
}

/// What keeps a role from migrating that owns the tables: the SQL, the obstacle, and the SQL that removes it.
const BLOCKS_OF_AN_OWNER: &[(&str, &str, &str)] = &[
    (
        "ALTER TABLE calls_2025 OWNER TO CURRENT_USER",
        "ownership of public.calls_2025",
        "ALTER TABLE public.calls_2025 OWNER TO \"the_owner\"",
    ),
    (
        "CREATE SCHEMA \"Parts\"; ALTER TABLE calls_2025 SET SCHEMA \"Parts\"",
        "CREATE on schema \"Parts\"",
        "GRANT USAGE, CREATE ON SCHEMA \"Parts\" TO \"the_owner\"",
    ),
    (
        "CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY, run_on timestamp DEFAULT now());
         GRANT SELECT ON __diesel_schema_migrations TO the_owner",
        "SELECT, INSERT on __diesel_schema_migrations",
        "GRANT SELECT, INSERT ON public.__diesel_schema_migrations TO \"the_owner\"",
    ),
    (
        "CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY, run_on timestamp DEFAULT now())",
        "SELECT, INSERT on __diesel_schema_migrations",
        "GRANT SELECT, INSERT ON public.__diesel_schema_migrations TO \"the_owner\"",
    ),
    (
        "CREATE ROLE a_planter; CREATE TABLE __diesel_schema_migrations (version varchar(50), run_on timestamp);
         ALTER TABLE __diesel_schema_migrations OWNER TO a_planter; GRANT ALL ON __diesel_schema_migrations TO PUBLIC",
        "owner of table __diesel_schema_migrations",
        "DROP OWNED BY a_planter; DROP ROLE a_planter",
    ),
    (
        "ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "row security on api_keys",
        "ALTER ROLE \"the_owner\" BYPASSRLS",
    ),
    (
        "ALTER ROLE the_owner SET default_tablespace = closed",
        "CREATE on tablespace closed",
        "GRANT CREATE ON TABLESPACE \"closed\" TO \"the_owner\"",
    ),
];

fn block_an_owner() {
    let Some((_first, mut first)) = existing_service_apart() else { return };
    for one in [
        "SET allow_in_place_tablespaces = on",
        "CREATE TABLESPACE closed LOCATION ''",
        "CREATE ROLE the_owner LOGIN",
        "CREATE ROLE the_deputy LOGIN NOINHERIT IN ROLE the_owner",
    ] {
        first.batch_execute(one).unwrap();
    }
    for (sql, name, fix) in BLOCKS_OF_AN_OWNER {
        let Some((database, mut admin)) = partitioned_service() else { return };
        let own = lines(
            &mut admin,
            "SELECT format('ALTER TABLE %s OWNER TO the_owner', oid::regclass) AS line FROM pg_class
             WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')",
        );
        admin.batch_execute(&own.join(";")).unwrap();
        admin.batch_execute("GRANT CREATE ON SCHEMA public TO the_owner, the_deputy").unwrap();
        admin.batch_execute(sql).unwrap();
        let mut owner = connect_as(&database, "the_owner");
        let obstacle = blocking(&mut owner, name);
        assert!(obstacle.action.starts_with(fix) || !fix.contains("the_owner"), "{obstacle}");
        admin.batch_execute(fix).unwrap();
        migrate(&mut owner).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let report = check(&mut owner).unwrap();
        assert!(report.is_clean(), "{sql}: {report}");

        // A member that does not inherit the rights of the owner has them after SET ROLE.
        admin.batch_execute("DROP INDEX ix_api_keys_denied").unwrap();
        let mut deputy = connect_as(&database, "the_deputy");
        let obstacle = blocking(&mut deputy, "ownership of api_keys");
        deputy.batch_execute(obstacle.action.split(',').next().unwrap()).unwrap();
        migrate(&mut deputy).unwrap();
        drop((owner, deputy));
        admin.batch_execute("DROP OWNED BY the_owner, the_deputy CASCADE").unwrap();
        admin.batch_execute("ALTER ROLE the_owner NOBYPASSRLS; ALTER ROLE the_owner RESET ALL").unwrap();
    }
    for one in ["DROP OWNED BY the_owner", "DROP TABLESPACE closed", "DROP ROLE the_owner, the_deputy"] {
        first.batch_execute(one).unwrap();
    }
}

#[test]
fn a_member_that_may_not_set_the_role_of_the_owner_is_told_what_to_grant() {
    for granted in ["SET FALSE, INHERIT TRUE", "SET FALSE, INHERIT FALSE", "SET FALSE, ADMIN TRUE"] {
        let Some((database, mut admin)) = existing_service_apart() else { return };
        let own = "ALTER TABLE api_keys OWNER TO an_owner; ALTER TABLE proxy_calls OWNER TO an_owner";
        let roles = "CREATE ROLE an_owner; CREATE ROLE a_deputy LOGIN";
        admin
            .batch_execute(&format!("{roles}; {own}; GRANT CREATE ON SCHEMA public TO an_owner, a_deputy"))
            .unwrap();
        if admin.batch_execute(&format!("GRANT an_owner TO a_deputy WITH {granted}")).is_ok() {
            let mut deputy = connect_as(&database, "a_deputy");
            let obstacles = check(&mut deputy).unwrap().obstacles;
            for obstacle in obstacles.iter().filter(|found| found.effect == Effect::BlocksMigration) {
                let (_, fix) = obstacle.action.split_once("Migrate as an_owner, or ").unwrap();
                assert_eq!(admin.batch_execute(fix), Ok(()), "{obstacle}");
            }
            migrate(&mut deputy).unwrap();
            assert!(check(&mut deputy).unwrap().is_clean());
        } else {
            eprintln!("skipped: the server knows no SET option (PostgreSQL 16 and newer do)");
        }
        admin
            .batch_execute("DROP OWNED BY an_owner, a_deputy CASCADE; DROP ROLE an_owner, a_deputy")
            .unwrap();
    }
}

fn connect_as(database: &Database, role: &str) -> PgConnection {
    PgConnection::establish(&database.url().replace("user=postgres", &format!("user={role}"))).unwrap()
}

#[test]
fn a_view_or_policy_on_the_prefix_skips_only_the_step_that_widens_it() {
    for (sql, name) in [
        ("CREATE VIEW v AS SELECT key_prefix FROM api_keys", "view public.v"),
        ("CREATE MATERIALIZED VIEW m AS SELECT * FROM api_keys", "materialized view public.m"),
        ("CREATE POLICY p ON api_keys USING (key_prefix <> '')", "policy p on table public.api_keys"),
        ("CREATE INDEX i ON api_keys (lower(key_prefix))", "index public.i"),
        (
            "ALTER TABLE api_keys ADD COLUMN short text GENERATED ALWAYS AS (left(key_prefix, 3)) STORED",
            "column short of table public.api_keys",
        ),
    ] {
        let Some((_database, mut conn)) = existing_service() else { return };
        conn.batch_execute(sql).unwrap();
        let report = check(&mut conn).unwrap();
        let obstacle = report.obstacles.iter().find(|obstacle| obstacle.name == "column api_keys.key_prefix");
        let obstacle = obstacle.unwrap_or_else(|| panic!("{sql}: {report}"));
        assert!(obstacle.why.contains(name), "{sql}: {obstacle}");
        assert_eq!(obstacle.effect, Effect::Degrades);
        let applied = migrate(&mut conn).unwrap();
        assert_eq!(applied.len(), names().len() - 1, "{sql}");
        assert!(migrate(&mut conn).unwrap().is_empty(), "{sql}");
    }
}

fn assert_what_the_existing_service_has_to_know() {
    let Some((_database, mut conn)) = existing_service() else { return };
    found(&mut conn);
    let report = check(&mut conn).unwrap();
    assert_eq!(report.pending, names());
    assert_eq!(report.applied, [""; 0]);
    assert_eq!(report.schema.as_deref(), Some("public"));
    let obstacles: Vec<_> = report.obstacles.iter().map(|obstacle| obstacle.name.as_str()).collect();
    assert_eq!(obstacles, ["prepared statements"]);
    conn.batch_execute("CREATE PUBLICATION outside FOR TABLE api_keys").unwrap();
    assert_eq!(found(&mut conn).len(), names().len() + 2);
    assert!(check(&mut conn).unwrap().to_string().contains("subscribers of outside stop"));
}

#[test]
fn check_is_refused_in_a_transaction_and_works_under_any_timeout() {
    let (_database, mut conn) = empty();
    assert!(matches!(conn.transaction(check), Err(Error::AlreadyInTransaction)));
    conn.batch_execute("SET statement_timeout = '1ms'").unwrap();
    for _ in 0..20 {
        assert!(!check(&mut conn).unwrap().pending.is_empty());
    }
    conn.batch_execute("SET statement_timeout = 0; SET quote_all_identifiers = on").unwrap();
    migrate(&mut conn).unwrap();
    assert_eq!(found(&mut conn), [""; 0]);
}

#[test]
fn a_recorded_step_whose_objects_are_missing_is_reported_and_repeated() {
    let (_database, mut conn) = empty();
    // As if the application had a migration of the same version in the same table.
    let step = names().into_iter().find(|name| name.ends_with("_api_keys_changes")).unwrap();
    let version = step.split_once('_').unwrap().0.replace('-', "");
    migrate(&mut conn).unwrap();
    Migrator::new().revert(&mut conn).unwrap();
    conn.batch_execute(&format!("INSERT INTO __diesel_schema_migrations (version) VALUES ('{version}')"))
        .unwrap();
    let found = found(&mut conn);
    assert!(found.contains(&"pending api_keys_changes".into()), "{found:?}");
    assert_eq!(migrate(&mut conn).unwrap(), names());
    assert!(check(&mut conn).unwrap().is_clean());
}
