//! A server that one test has for itself, to stop, crash, demote and start again.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex};

use diesel::prelude::*;
use rustix::process::{Pid, Signal, kill_process};

use crate::server::{self, ENOUGH_MEMORY, parent_folder, share, start_watchdog, url_in};
use crate::{Database, Result, binaries};

/// A server of one's own. Like the shared one it is gone afterwards, however the process went.
///
/// Unlike the shared one it writes its log ahead before it acknowledges a commit, so that a crash of it
/// loses none.
pub struct PrivateServer {
    bin: PathBuf,
    home: PathBuf,
    postgres: Option<Child>,
    /// The watchdog waits for it.
    _lock: File,
}

impl PrivateServer {
    /// Makes and starts a server.
    pub fn start_new() -> Result<Self> {
        let bin = binaries::programs()?;
        let random = RandomState::new().build_hasher().finish();
        let home = parent_folder(ENOUGH_MEMORY).join(format!("throwaway_postgres-private-{random:016x}"));
        let lock_path = home.with_extension("lock");
        let lock = share(&lock_path)?;
        fs::create_dir(&home)?;
        start_watchdog(&lock_path, &home)?;
        server::initialize(&bin, &home)?;
        let mut server = Self { bin, home, postgres: None, _lock: lock };
        server.start()?;
        Ok(server)
    }

    /// The folder of the server's socket, which is also its own folder.
    #[must_use]
    pub fn socket_folder(&self) -> &Path {
        &self.home
    }

    /// Creates an empty database. It lasts as long as the server.
    pub fn create_database(&self) -> Result<Database> {
        let keeper = PgConnection::establish(&url_in(&self.home))?;
        Database::create(&url_in(&self.home), Arc::new(Mutex::new(keeper)))
    }

    /// Starts the server again after [`stop`](Self::stop) or [`crash`](Self::crash).
    pub fn start(&mut self) -> Result<()> {
        self.postgres = Some(server::launch(&self.bin, &self.home, &["-c", "synchronous_commit=on"])?);
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
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        // The watchdog would wait for a process that only this one can bury.
        let _ = self.stop();
    }
}
