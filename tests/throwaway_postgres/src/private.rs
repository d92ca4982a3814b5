//! A server for one test, which can stop, crash, kill, pause, demote and restart it.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use diesel::prelude::*;
use rustix::process::{Pid, Signal, kill_process};

use crate::server::{self, DEFAULT_PORT, ENOUGH_MEMORY, parent_folder, share, start_watchdog, url_in};
use crate::{Database, Result, binaries};

/// A server for one test. Like the shared server, it is removed afterwards, even if the process is killed.
///
/// Unlike the shared server, it writes its log before it acknowledges a commit, so a crash loses no commit.
pub struct PrivateServer {
    pub(crate) bin: PathBuf,
    pub(crate) home: PathBuf,
    pub(crate) port: u16,
    pub(crate) settings: Vec<String>,
    postgres: Option<Child>,
    /// The watchdog waits for it.
    _lock: File,
}

impl PrivateServer {
    /// Creates and starts a server.
    pub fn start_new() -> Result<Self> {
        Self::start_from(binaries::programs()?)
    }

    /// Creates and starts a server with the programs of a folder. They may have any version.
    pub fn start_from(bin: PathBuf) -> Result<Self> {
        let mut server = Self::without_data(bin, DEFAULT_PORT)?;
        server::initialize(&server.bin, &server.home, &[])?;
        server.start()?;
        Ok(server)
    }

    /// Creates the folder and starts its watchdog. The folder has no data yet.
    pub(crate) fn without_data(bin: PathBuf, port: u16) -> Result<Self> {
        let random = RandomState::new().build_hasher().finish();
        let home = parent_folder(ENOUGH_MEMORY).join(format!("throwaway_postgres-private-{random:016x}"));
        let lock_path = home.with_extension("lock");
        let lock = share(&lock_path)?;
        server::create_home(&home)?;
        start_watchdog(&lock_path, &home)?;
        let settings = vec!["synchronous_commit=on".to_owned()];
        Ok(Self { bin, home, port, settings, postgres: None, _lock: lock })
    }

    /// The folder of the server's socket, which is also its own folder.
    #[must_use]
    pub fn socket_folder(&self) -> &Path {
        &self.home
    }

    /// The URL of the database `postgres`, over the server's socket. Every server has this database.
    #[must_use]
    pub fn url(&self) -> String {
        url_in(&self.home, self.port)
    }

    /// The port of the server's socket, and of 127.0.0.1 if it is one of a [`Pair`](crate::Pair).
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Creates an empty database. It is removed with the server.
    pub fn create_database(&self) -> Result<Database> {
        let keeper = PgConnection::establish(&self.url())?;
        Database::create(&self.url(), Arc::new(Mutex::new(keeper)))
    }

    /// Starts the server again after [`stop`](Self::stop), [`crash`](Self::crash) or [`kill`](Self::kill).
    pub fn start(&mut self) -> Result<()> {
        self.postgres = Some(server::launch(&self.bin, &self.home, self.port, &self.settings)?);
        Ok(())
    }

    /// Ends every session and stops the server normally, with a checkpoint.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::INT)
    }

    /// Stops the server without a checkpoint. When it is started again, it recovers from its log.
    pub fn crash(&mut self) -> Result<()> {
        self.end(Signal::QUIT)
    }

    /// Kills every process of the server at once. The clients get no message from the server; the kernel only closes
    /// the sockets.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut postgres) = self.postgres.take() else { return Ok(()) };
        let pid = Pid::from_child(&postgres);
        // It is stopped first, so that it starts no new process.
        kill_process(pid, Signal::STOP)?;
        for process in children_of(pid)?.into_iter().chain([pid]) {
            // A session may have ended by itself meanwhile.
            let _ = kill_process(process, Signal::KILL);
        }
        postgres.wait()?;
        self.remove_shared_memory();
        Ok(())
    }

    /// Pauses every process of the server (`SIGSTOP`). The kernel still accepts connections and acknowledges data, but
    /// the server does not answer.
    pub fn pause(&self) -> Result<()> {
        self.signal_all(Signal::STOP)
    }

    /// Continues the processes after [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.signal_all(Signal::CONT)
    }

    /// Sets whether the stopped server starts as a standby, which is read-only.
    pub fn set_standby(&mut self, is_standby: bool) -> Result<()> {
        let signal = self.home.join("data/standby.signal");
        if is_standby {
            server::give_to_server_user(&File::create(&signal)?)?;
        } else {
            fs::remove_file(&signal)?;
        }
        Ok(())
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        if let Some(mut postgres) = self.postgres.take() {
            kill_process(Pid::from_child(&postgres), signal)?;
            postgres.wait()?;
        }
        Ok(())
    }

    fn signal_all(&self, signal: Signal) -> Result<()> {
        let Some(postgres) = &self.postgres else { return Ok(()) };
        let pid = Pid::from_child(postgres);
        kill_process(pid, signal)?;
        // The kernel's list may miss a child process while another one ends. When two lists are equal, none is missing,
        // because the processes of the first list are already stopped.
        let mut signalled = None;
        loop {
            let children = children_of(pid)?;
            if signalled.as_ref() == Some(&children) {
                return Ok(());
            }
            for child in &children {
                // A session may have ended by itself meanwhile.
                let _ = kill_process(*child, signal);
            }
            signalled = Some(children);
        }
    }

    /// The shared memory segment of a killed server remains until the server is started again.
    fn remove_shared_memory(&self) {
        let pid_file = fs::read_to_string(self.home.join("data/postmaster.pid")).unwrap_or_default();
        if let Some(id) = pid_file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let _ = Command::new("ipcrm").args(["-m", id]).output();
        }
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        // Only this process can wait for its child, so the watchdog would wait forever. A paused server, or one that
        // waits for a standby, would not stop normally.
        let _ = self.resume();
        let _ = self.crash();
    }
}

/// A free TCP port of the loopback address.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn children_of(parent: Pid) -> Result<Vec<Pid>> {
    let processes = fs::read_dir("/proc")?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |number: &i32| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        // The name is in parentheses and may hold any character. The state and the parent come after it.
        let parent_of = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        parent_of == Some(&parent.as_raw_nonzero().to_string())
    };
    Ok(numbers.filter(is_child).filter_map(Pid::from_raw).collect())
}
