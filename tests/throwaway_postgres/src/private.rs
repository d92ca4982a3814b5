//! A server that one test has for itself, to stop, crash, kill, pause, demote and start again.

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

/// A server of one's own. Like the shared one it is gone afterwards, however the process went.
///
/// Unlike the shared one it writes its log ahead before it acknowledges a commit, so that a crash of it
/// loses none.
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
    /// Makes and starts a server.
    pub fn start_new() -> Result<Self> {
        Self::start_from(binaries::programs()?)
    }

    /// The same with the programs of a folder, of whatever version they are.
    pub fn start_from(bin: PathBuf) -> Result<Self> {
        let mut server = Self::without_data(bin, DEFAULT_PORT)?;
        server::initialize(&server.bin, &server.home, &[])?;
        server.start()?;
        Ok(server)
    }

    /// A folder with a watchdog, and no data in it yet.
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

    /// The URL of the database `postgres`, which every server has, over the server's socket.
    #[must_use]
    pub fn url(&self) -> String {
        url_in(&self.home, self.port)
    }

    /// The port of the server's socket, and of 127.0.0.1 if it is one of a [`Pair`](crate::Pair).
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Creates an empty database. It lasts as long as the server.
    pub fn create_database(&self) -> Result<Database> {
        let keeper = PgConnection::establish(&self.url())?;
        Database::create(&self.url(), Arc::new(Mutex::new(keeper)))
    }

    /// Starts the server again after [`stop`](Self::stop), [`crash`](Self::crash) or [`kill`](Self::kill).
    pub fn start(&mut self) -> Result<()> {
        self.postgres = Some(server::launch(&self.bin, &self.home, self.port, &self.settings)?);
        Ok(())
    }

    /// Ends every session and stops the server in good order.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::INT)
    }

    /// Ends the server without a checkpoint: it recovers from its log when it is started again.
    pub fn crash(&mut self) -> Result<()> {
        self.end(Signal::QUIT)
    }

    /// Kills every process of the server at once, as if its machine had lost power. Nothing is said to
    /// the clients but what the kernel says when it closes a dead process's sockets.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut postgres) = self.postgres.take() else { return Ok(()) };
        let pid = Pid::from_child(&postgres);
        // Stopped first, so that it makes no new child.
        kill_process(pid, Signal::STOP)?;
        for process in children_of(pid)?.into_iter().chain([pid]) {
            // A session may have ended by itself meanwhile.
            let _ = kill_process(process, Signal::KILL);
        }
        postgres.wait()?;
        self.remove_shared_memory();
        Ok(())
    }

    /// Stops every process of the server from running (`SIGSTOP`): its kernel accepts connections and
    /// acknowledges what arrives, and nobody answers.
    pub fn pause(&self) -> Result<()> {
        self.signal_all(Signal::STOP)
    }

    /// Lets the processes run on after [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.signal_all(Signal::CONT)
    }

    /// Says whether the stopped server is a replica, which takes no writes, when it is started again.
    pub fn set_replica(&mut self, replica: bool) -> Result<()> {
        let signal = self.home.join("data/standby.signal");
        if replica {
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
        // The kernel's list may miss a child while another one ends. Two lists alike miss none: by the second,
        // those of the first are stopped.
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

    /// The interlock segment of a killed server outlives it until the server is started again.
    fn remove_shared_memory(&self) {
        let pid_file = fs::read_to_string(self.home.join("data/postmaster.pid")).unwrap_or_default();
        if let Some(id) = pid_file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let _ = Command::new("ipcrm").args(["-m", id]).output();
        }
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        // The watchdog would wait for a process that only this one can bury. A paused server, or one that
        // waits for a standby, would not stop in good order.
        let _ = self.resume();
        let _ = self.crash();
    }
}

/// A TCP port of the loopback address that nobody listens on.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn children_of(parent: Pid) -> Result<Vec<Pid>> {
    let processes = fs::read_dir("/proc")?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |number: &i32| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything. The state and the parent follow it.
        let parent_of = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        parent_of == Some(&parent.as_raw_nonzero().to_string())
    };
    Ok(numbers.filter(is_child).filter_map(Pid::from_raw).collect())
}
