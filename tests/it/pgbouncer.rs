//! A real PgBouncer in transaction mode, which gives a session to another client after each transaction.

use std::env;
use std::fs;
use std::io;
use std::ops::AddAssign;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use api_keys_driver::schema::proxy_calls;
use api_keys_driver::{
    Advice, ApiKeysFacadeDriver, Bucket, Error, KeyEventListener, KeyId, KeyStatus, KeyUsageSnapshot,
    KeysDriver, Page, Pool, PoolConfig, Result, StatementCache, TenantId, Timeouts, Transaction, TryLock,
    Wake, migrate,
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::{CacheSize, SimpleConnection};
use diesel::prelude::*;
use throwaway_postgres::{Database, PrivateServer};

use crate::support::{CallRow, KeyRow, PATIENCE, at, decimal};

const WORKERS: usize = 8;
const SESSIONS: usize = 2;
const QUESTIONS: usize = 7;
const ROUNDS: usize = 40;

/// A PgBouncer that is stopped when this value is dropped, or when this process ends.
struct Bouncer {
    /// A shell that stops the bouncer when its input ends.
    shell: Child,
    folder: PathBuf,
}

impl Bouncer {
    /// Starts PgBouncer in front of a server. Returns `None` if it is not installed, except in CI.
    fn start(server: &PrivateServer) -> Option<Self> {
        Self::start_with("", server)
    }

    fn start_with(setting: &str, server: &PrivateServer) -> Option<Self> {
        let Some(program) = program() else {
            let missing = "PgBouncer is not installed (Debian: apt-get install pgbouncer), so that nothing \
                           behind it is tested";
            assert!(env::var_os("CI").is_none(), "{missing}");
            eprintln!("\n*** SKIPPED: {missing} ***\n");
            return None;
        };
        let owner = fs::metadata(server.socket_folder()).unwrap();
        let folder = server.socket_folder().join("bouncer");
        fs::create_dir(&folder).unwrap();
        let settings = folder.join("pgbouncer.ini");
        fs::write(
            &settings,
            format!(
                "[databases]\n* = host={server} user=postgres\n\
                 [pgbouncer]\nlisten_port = 6432\nunix_socket_dir = {folder}\nauth_type = any\n\
                 server_login_retry = 1\n{setting}\n\
                 pool_mode = transaction\ndefault_pool_size = {SESSIONS}\nmax_client_conn = 100\n\
                 logfile = {folder}/log\n",
                server = server.socket_folder().display(),
                folder = folder.display(),
            ),
        )
        .unwrap();
        chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "\"$0\" --quiet \"$1\" & read -r _; kill $!; wait"])
            .args([&program, &settings])
            .stdin(Stdio::piped());
        if owner.uid() != fs::metadata("/proc/self").unwrap().uid() {
            shell.uid(owner.uid()).gid(owner.gid());
        }
        let bouncer = Self { shell: shell.spawn().unwrap(), folder };
        let deadline = Instant::now() + PATIENCE;
        while !bouncer.folder.join(".s.PGSQL.6432").exists() {
            let log = || fs::read_to_string(bouncer.folder.join("log"));
            assert!(Instant::now() < deadline, "PgBouncer did not start: {:?}", log());
            thread::sleep(Duration::from_millis(10));
        }
        Some(bouncer)
    }

    fn url(&self, database: &Database) -> String {
        // If a parameter has two values, libpq uses the last one.
        format!("{}&host={}&port=6432", database.url(), self.folder.display())
    }

    /// A pool with the settings that the bouncer requires.
    fn pool(&self, database: &Database) -> Pool {
        let size = u32::try_from(WORKERS).unwrap();
        let config = PoolConfig::new(self.url(database)).size(size);
        config.statement_cache(StatementCache::Off).build().unwrap()
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

fn program() -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from);
    env::split_paths(&folders).chain(usual).map(|folder| folder.join("pgbouncer")).find(|path| path.is_file())
}

/// Whether the version can track prepared statements in transaction mode.
fn knows_prepared_statements(program: &Path) -> io::Result<bool> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let minor = text.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    Ok(minor.is_none_or(|minor| minor >= 21))
}

#[derive(Debug, Default, PartialEq)]
struct Answers {
    right: usize,
    wrong: usize,
    failed: usize,
}

impl AddAssign for Answers {
    fn add_assign(&mut self, other: Self) {
        self.right += other.right;
        self.wrong += other.wrong;
        self.failed += other.failed;
    }
}

impl Answers {
    fn note(&mut self, is_right: &Result<bool>) {
        match is_right {
            Ok(true) => self.right += 1,
            Ok(false) => self.wrong += 1,
            Err(_) => self.failed += 1,
        }
    }
}

/// Inserts a tenant for each worker, with as many keys and calls as the number of the worker.
fn insert_tenants(conn: &mut PgConnection) {
    for worker in 1..=WORKERS {
        for n in 0..worker {
            let id = format!("{worker}-{n}");
            let tenant_id = worker.to_string();
            KeyRow { id: &id, tenant_id: &tenant_id, name: &id, ..KeyRow::default() }.insert(conn);
            CallRow {
                id: &id,
                tenant_id: &tenant_id,
                api_key_id: Some(&format!("{worker}-0")),
                cost_cents: Some(decimal("0.5")),
                ..CallRow::default()
            }
            .insert(conn);
        }
    }
}

type Question<'a> = &'a dyn Fn(&mut PgConnection) -> Result<bool>;

/// Reads all rows of the worker's tenant and compares them with the known ones.
///
/// Each worker begins with another query, so that the same statement name stands for different statements.
fn work(worker: usize, mut ask: impl FnMut(Question<'_>) -> Result<bool>) -> Answers {
    let tenant_id = TenantId::from(worker.to_string());
    let key_id = KeyId::from(format!("{worker}-0"));
    let page = Page { limit: 3, offset: 0 };
    let rows = i64::try_from(worker).unwrap();
    let questions: [Question<'_>; QUESTIONS] = [
        &|conn| {
            let keys = KeysDriver::new(conn).fetch_keys(&tenant_id, page)?;
            Ok(keys.len() == worker.min(3) && keys.iter().all(|key| key.tenant_id == tenant_id))
        },
        &|conn| Ok(KeysDriver::new(conn).count_keys(&tenant_id)? == rows),
        &|conn| {
            let key = KeysDriver::new(conn).fetch_key_by_id(&tenant_id, &key_id)?;
            Ok(key.is_some_and(|key| key.id == key_id && key.name == key_id.as_str()))
        },
        &|conn| {
            let since = at("2026-01-01T00:00:00Z");
            Ok(KeysDriver::new(conn).fetch_key_usage(&tenant_id, &key_id, since)?.request_count == rows)
        },
        &|conn| {
            let keys =
                ApiKeysFacadeDriver::new(conn).fetch_api_keys(&tenant_id, Some(&KeyStatus::Active), page)?;
            let own = format!("{worker}-");
            Ok(keys.len() == worker.min(3) && keys.iter().all(|key| key.id.as_str().starts_with(&own)))
        },
        &|conn| {
            Transaction::attempts(5).timeouts(Timeouts::default()).run(conn, |conn| {
                let mut keys = KeysDriver::new(conn);
                let Some(locked) = keys.fetch_key_for_update(&tenant_id, &key_id)? else { return Ok(false) };
                let (is_ours, was_frozen) = (locked.id == key_id, locked.is_frozen);
                let changed = if was_frozen {
                    keys.update_key_unfrozen(locked)?
                } else {
                    keys.update_key_frozen(locked, at("2026-06-01T12:00:00Z"))?
                };
                Ok::<_, Error>(is_ours && changed.id == key_id && changed.is_frozen != was_frozen)
            })
        },
        &|conn| {
            Transaction::attempts(5).run(conn, |conn| {
                let tried = KeysDriver::new(conn).try_fetch_key_for_update(&tenant_id, &key_id)?;
                Ok::<_, Error>(matches!(tried, TryLock::Locked(key) if key.id == key_id))
            })
        },
    ];
    let mut answers = Answers::default();
    for question in questions.iter().cycle().skip(worker % QUESTIONS).take(ROUNDS * QUESTIONS) {
        answers.note(&ask(question));
    }
    answers
}

/// Lets all workers run at once. `work_as` is one worker.
fn work_all(work_as: impl Fn(usize) -> Answers + Sync) -> Answers {
    let mut all = Answers::default();
    thread::scope(|scope| {
        let work_as = &work_as;
        let workers: Vec<_> = (1..=WORKERS).map(|worker| scope.spawn(move || work_as(worker))).collect();
        for worker in workers {
            all += worker.join().unwrap();
        }
    });
    all
}

diesel::define_sql_function!(fn current_setting(name: diesel::sql_types::Text) -> Text);

fn lock_timeout(pool: &Pool) -> String {
    diesel::select(current_setting("lock_timeout")).get_result(&mut pool.get().unwrap()).unwrap()
}

#[test]
fn with_the_statement_cache_off_every_answer_is_right_under_load() {
    let server = PrivateServer::start_new().unwrap();
    let Some(bouncer) = Bouncer::start(&server) else { return };
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    insert_tenants(&mut database.connect().unwrap());

    let pool = bouncer.pool(&database);
    let answers = work_all(|worker| {
        work(worker, |question| question(&mut *pool.get()?).inspect_err(|error| eprintln!("{error:?}")))
    });
    println!("cache off: {answers:?}");
    assert_eq!(answers, Answers { right: WORKERS * ROUNDS * QUESTIONS, ..Answers::default() });
    assert_eq!(lock_timeout(&pool), "0", "no setting stayed behind");
}

#[test]
fn with_the_statement_cache_on_answers_are_wrong_or_fail() {
    let server = PrivateServer::start_new().unwrap();
    let Some(bouncer) = Bouncer::start(&server) else { return };
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    insert_tenants(&mut database.connect().unwrap());

    // Without a pool, because the pool's own test of a connection fails, so it would return none.
    let answers = work_all(|worker| {
        let mut conn = PgConnection::establish(&bouncer.url(&database)).unwrap();
        work(worker, |question| question(&mut conn))
    });
    println!("cache on: {answers:?}");
    if !knows_prepared_statements(&program().unwrap()).unwrap() {
        assert!(answers.wrong + answers.failed > 0, "then the cache need not be off: {answers:?}");
    }
}

/// Reads the usage of the worker's tenant with every method, while usage is counted, recounted and deleted.
fn ask_for_usage(worker: usize, conn: &mut PgConnection) -> Result<bool> {
    let (tenant_id, key_id) = (TenantId::from(worker.to_string()), KeyId::from(format!("{worker}-0")));
    let (since, middle, never) =
        (at("2025-12-01T00:00:00Z"), CallRow::default().created_at, at("2099-01-01T00:00:00Z"));
    let calls = i64::try_from(worker).unwrap();
    let mut used = KeyUsageSnapshot::default();
    (used.request_count, used.spend_cents) = (calls, decimal("0.5") * calls);
    let none = KeyUsageSnapshot::default();

    let mut keys = KeysDriver::new(conn);
    let pairs = keys.fetch_key_usage_between(&tenant_id, &key_id, &[since, middle, never])?;
    let hours = keys.fetch_key_usage_series(
        &tenant_id,
        &key_id,
        middle - TimeDelta::hours(1)..middle + TimeDelta::hours(1),
        Bucket::Hour,
    )?;
    let page = keys.fetch_keys_with_usage(&tenant_id, since, Page::default())?;
    Ok(pairs == [none.clone(), used.clone()]
        && hours.iter().map(|hour| hour.usage.request_count).sum::<i64>() == calls
        && keys.fetch_key_usage(&tenant_id, &key_id, since)? == used
        && keys.fetch_tenant_usage(&tenant_id, since)? == used
        && keys.fetch_tenant_usage_by_key(&tenant_id, since..never, 9)? == [(key_id.clone(), used.clone())]
        && page
            .iter()
            .all(|(key, usage)| *usage == if key.id == key_id { used.clone() } else { none.clone() })
        && page.len() == worker)
}

#[test]
fn usage_is_exact_behind_the_bouncer_while_it_is_counted_recounted_and_deleted() {
    let server = PrivateServer::start_new().unwrap();
    let Some(bouncer) = Bouncer::start(&server) else { return };
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    let mut direct = database.connect().unwrap();
    insert_tenants(&mut direct);
    let pool = bouncer.pool(&database);
    let until = CallRow::default().created_at + TimeDelta::hours(1);
    let all = DateTime::<Utc>::MIN_UTC..DateTime::<Utc>::MAX_UTC;

    let maintain = |index: usize| {
        let mut conn = pool.get()?;
        let mut keys = KeysDriver::new(&mut conn);
        if index.is_multiple_of(5) {
            keys.recount_usage(DateTime::UNIX_EPOCH)?;
        }
        keys.roll_up_usage(until, 3)?;
        if index > ROUNDS / 2 {
            keys.delete_calls_before(until, 2)?;
            keys.retire_calls_before(until)?;
        }
        Ok(keys.fetch_usage_drift(all.clone(), 5)?.is_empty())
    };
    let answers = work_all(|worker| {
        let mut answers = Answers::default();
        for index in 0..ROUNDS {
            let asked = pool.get().and_then(|mut conn| ask_for_usage(worker, &mut conn));
            answers.note(&asked.inspect_err(|error| eprintln!("{error:?}")));
            answers.note(&maintain(index).inspect_err(|error| eprintln!("{error:?}")));
        }
        answers
    });
    assert_eq!(answers, Answers { right: WORKERS * ROUNDS * 2, ..Answers::default() });

    let progress = KeysDriver::new(&mut direct).roll_up_usage(until, 1_000).unwrap().unwrap();
    assert_eq!(progress.counted_to, until);
    assert_eq!(proxy_calls::table.count().get_result::<i64>(&mut direct), Ok(0), "retention deleted them");
    for worker in 1..=WORKERS {
        assert!(ask_for_usage(worker, &mut direct).unwrap());
    }
}

#[test]
fn timeouts_of_the_role_hold_behind_the_bouncer() {
    let server = PrivateServer::start_new().unwrap();
    let Some(bouncer) = Bouncer::start(&server) else { return };
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    let mut direct = database.connect().unwrap();
    diesel::sql_query("ALTER ROLE postgres SET lock_timeout = '7s'").execute(&mut direct).unwrap();
    assert_eq!(lock_timeout(&bouncer.pool(&database)), "7s");
}

#[test]
fn a_server_lost_behind_the_bouncer_is_a_lost_connection() {
    let mut server = PrivateServer::start_new().unwrap();
    let Some(bouncer) = Bouncer::start_with("query_wait_timeout = 5", &server) else { return };
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    let pool = bouncer.pool(&database);
    let count = |conn: &mut PgConnection| KeysDriver::new(conn).count_keys(&"nobody".into());
    let (mut within, mut idle) = (pool.get().unwrap(), pool.get().unwrap());

    let lost = Transaction::attempts(1).run(&mut within, |conn| {
        count(conn)?;
        server.kill().unwrap();
        count(conn)
    });
    assert!(matches!(lost, Err(Error::ConnectionLost(_))), "{lost:?}");
    // The bouncer accepts clients, and reports only then that it has no server.
    let lost = count(&mut idle);
    assert!(matches!(lost, Err(Error::ConnectionLost(_))), "{lost:?}");
    drop((within, idle));

    server.start().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = pool.get().and_then(|mut conn| count(&mut conn)) {
        assert_eq!(error.advice(), Advice::Reconnect, "{error:?}");
        assert!(Instant::now() < deadline, "{error:?}");
    }
}

#[test]
fn a_call_on_a_stopped_server_ends_with_the_query_timeout_of_the_bouncer() {
    let server = PrivateServer::start_new().unwrap();
    let Some(bouncer) = Bouncer::start_with("query_timeout = 2", &server) else { return };
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    let mut conn = bouncer.pool(&database).get().unwrap();
    server.pause().unwrap();
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || answer.send(KeysDriver::new(&mut conn).count_keys(&"nobody".into())));
    let answer = answered.recv_timeout(PATIENCE);
    server.resume().unwrap();
    let lost = answer.expect("the bouncer ends the call");
    assert!(matches!(lost, Err(Error::ConnectionLost(_))), "{lost:?}");
}

#[test]
fn a_pool_returns_no_connection_while_the_bouncer_leads_to_a_standby() {
    let mut server = PrivateServer::start_new().unwrap();
    let Some(bouncer) = Bouncer::start(&server) else { return };
    let database = server.create_database().unwrap();
    let url = format!("{}&target_session_attrs=read-write", bouncer.url(&database));
    let config = PoolConfig::new(url).size(1).wait(Duration::from_secs(1));
    let pool = config.statement_cache(StatementCache::Off).build().unwrap();
    drop(pool.get().unwrap());

    server.stop().unwrap();
    server.set_standby(true).unwrap();
    server.start().unwrap();
    for _ in 0..5 {
        let refused = pool.get().map(drop).unwrap_err();
        assert_eq!(refused.advice(), Advice::Reconnect, "{refused:?}");
    }
    let promote = "SELECT pg_promote()";
    diesel::sql_query(promote).execute(&mut PgConnection::establish(&server.url()).unwrap()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = pool.get() {
        assert!(Instant::now() < deadline, "{error:?}");
    }
}

#[test]
fn a_listener_behind_the_bouncer_says_that_its_session_no_longer_listens() {
    let server = PrivateServer::start_new().unwrap();
    let Some(bouncer) = Bouncer::start(&server) else { return };
    let database = server.create_database().unwrap().prepare(migrate).unwrap();
    let connect = || {
        let mut conn = PgConnection::establish(&bouncer.url(&database)).unwrap();
        conn.set_prepared_statement_cache_size(CacheSize::Disabled);
        conn
    };
    let (mut conn, mut other) = (connect(), connect());
    let mut listener = KeyEventListener::new(&mut conn).unwrap();
    // This uses the only session that the bouncer has so far, which is the one that listens.
    other.batch_execute("BEGIN; SELECT").unwrap();
    assert_eq!(listener.wait(Duration::from_millis(5)).unwrap(), Wake::NotListening);
    other.batch_execute("COMMIT").unwrap();
    assert_eq!(listener.wait(Duration::from_millis(5)).unwrap(), Wake::NotListening);
}

#[test]
fn options_that_a_bouncer_refuses_are_no_reason_to_connect_again() {
    let server = PrivateServer::start_new().unwrap();
    let database = server.create_database().unwrap();
    let Some(bouncer) = Bouncer::start(&server) else { return };
    let url = format!("{}&options=-c%20geqo%3Doff", bouncer.url(&database));
    let refused = PoolConfig::new(url).statement_cache(StatementCache::Off).build().unwrap_err();
    assert!(matches!(refused, Error::ConnectionString), "{refused:?}");
    assert_eq!(refused.advice(), Advice::Fail);
}
