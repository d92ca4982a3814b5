//! Processes that are killed leave no database, no server and no folder behind, and a killed server is replaced.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use rustix::process::{Pid, Signal, kill_process};

/// Another process that holds a migrated database, on a server that is not the one of this test's process.
struct Holder {
    process: Child,
    url: String,
}

impl Holder {
    fn start(programs: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_throwaway_postgres"))
            .env("PG_BIN", programs)
            .env_remove("TEST_DATABASE_URL")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { process, url: url.trim().to_owned() }
    }

    /// As the kernel kills: nothing of the process runs any more.
    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn home(&self) -> PathBuf {
        let (_, host) = self.url.split_once("host=").unwrap();
        PathBuf::from(host.split('&').next().unwrap())
    }

    /// The server's first process, by its id.
    fn postmaster(&self) -> i32 {
        let pid_file = fs::read_to_string(self.home().join("data/postmaster.pid")).unwrap();
        pid_file.lines().next().unwrap().parse().unwrap()
    }
}

/// The programs of the machine under a name of their own, which gives them a server of their own.
fn programs(name: &str) -> PathBuf {
    let path = env::temp_dir().join(format!("throwaway_postgres-{}-{name}", std::process::id()));
    let _ = fs::remove_file(&path);
    symlink(throwaway_postgres::programs().unwrap(), &path).unwrap();
    path
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_process_leaves_no_database() {
    let programs = programs("database");
    let keeps_the_server = Holder::start(&programs);
    let killed = Holder::start(&programs);
    assert_eq!(killed.home(), keeps_the_server.home(), "two processes share a server");
    let url = killed.url.clone();
    PgConnection::establish(&url).unwrap();
    killed.kill();

    let sweeps = Holder::start(&programs);
    assert!(PgConnection::establish(&url).is_err(), "the database of the killed process is there");
    PgConnection::establish(&keeps_the_server.url).expect("the database of a living process is gone");
    keeps_the_server.kill();
    sweeps.kill();
    fs::remove_file(programs).unwrap();
}

#[test]
fn the_last_process_takes_the_server_and_its_folder_along_however_it_ends() {
    let programs = programs("server");
    for kill in [true, false] {
        let mut last = Holder::start(&programs);
        let home = last.home();
        let postmaster = Path::new("/proc").join(last.postmaster().to_string());
        assert!(postmaster.exists());

        if kill {
            last.kill();
        } else {
            drop(last.process.stdin.take());
            last.process.wait().unwrap();
        }
        eventually("the folder is there", || !home.exists());
        eventually("the lock file is there", || !home.with_extension("lock").exists());
        eventually("the server runs", || !postmaster.exists());
    }
    fs::remove_file(programs).unwrap();
}

#[test]
fn a_server_that_was_killed_is_replaced_by_the_next_process() {
    let programs = programs("dead");
    // While its starter lives, the killed server stays a zombie, to which signals can be sent.
    for starter_lives in [true, false] {
        let (starter, other) = (Holder::start(&programs), Holder::start(&programs));
        let (home, killed) = (other.home(), other.postmaster());
        let starter = if starter_lives {
            Some(starter)
        } else {
            starter.kill();
            None
        };
        kill_process(Pid::from_raw(killed).unwrap(), Signal::KILL).unwrap();
        eventually("the killed server answers", || PgConnection::establish(&other.url).is_err());

        let next = Holder::start(&programs);
        assert_eq!(next.home(), home, "the new server is where the old one was");
        PgConnection::establish(&next.url).expect("the new server does not answer");
        let joins = Holder::start(&programs);
        assert_eq!(joins.postmaster(), next.postmaster(), "a living server is not replaced");

        starter.into_iter().chain([other, next, joins]).for_each(Holder::kill);
        eventually("the folder is there", || !home.exists());
    }
    fs::remove_file(programs).unwrap();
}
