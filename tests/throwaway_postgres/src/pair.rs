//! A primary and its standby, for tests of failovers.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};

use crate::private::free_port;
use crate::server::{PATIENCE, as_server_user, give_to_server_user, initialize};
use crate::{PrivateServer, Result, binaries};

/// Whether a commit waits for the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// A commit is acknowledged when the primary and the standby have written it. If the standby is down, it waits.
    Synchronous,
    /// A commit is acknowledged when the primary has written it. The standby may receive it later.
    Asynchronous,
}

/// A primary and its standby with streaming replication. Both listen on a socket and on 127.0.0.1.
///
/// ```
/// use diesel::prelude::*;
/// use throwaway_postgres::{Pair, Replication};
///
/// let mut pair = Pair::start_new(Replication::Synchronous)?;
/// let mut conn = PgConnection::establish(&pair.url())?;
/// diesel::sql_query("CREATE TABLE notes (id bigint PRIMARY KEY)").execute(&mut conn)?;
///
/// pair.primary.kill()?;
/// pair.promote()?; // the standby is the primary now
/// let mut conn = PgConnection::establish(&pair.url())?;
/// assert_eq!(diesel::sql_query("SELECT FROM notes").execute(&mut conn)?, 0);
///
/// pair.rejoin(Replication::Synchronous)?; // the old primary is the standby now
/// # Ok::<(), throwaway_postgres::BoxError>(())
/// ```
pub struct Pair {
    /// The server that accepts writes.
    pub primary: PrivateServer,
    /// The standby. After [`promote`](Self::promote), it is the old primary.
    pub standby: PrivateServer,
}

impl Pair {
    /// Creates and starts two servers, and waits until the standby streams.
    pub fn start_new(replication: Replication) -> Result<Self> {
        let mut primary = without_data()?;
        // pg_rewind needs checksums.
        initialize(&primary.bin, &primary.home, &["--data-checksums"])?;
        // The setting is in the file, because the recovery that pg_rewind starts reads only the file.
        let mut settings = File::options().append(true).open(primary.home.join("data/postgresql.conf"))?;
        writeln!(settings, "wal_keep_size = 128MB\nmax_wal_size = 256MB")?;
        primary.start()?;
        let standby = without_data()?;
        copy_data(&primary, &standby)?;
        let mut pair = Self { primary, standby };
        pair.start_standby(replication)?;
        Ok(pair)
    }

    /// Returns a URL of the database `postgres` that names both servers and leads to the primary.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts = self.each(|server| server.home.display().to_string());
        let ports = self.each(|server| server.port.to_string());
        format!(
            "postgresql:///postgres?host={hosts}&port={ports}&user=postgres&target_session_attrs=read-write"
        )
    }

    /// Returns the same as [`url`](Self::url), over TCP.
    #[must_use]
    pub fn tcp_url(&self) -> String {
        let addresses = self.each(|server| format!("127.0.0.1:{}", server.port));
        format!("postgresql://postgres@{addresses}/postgres?target_session_attrs=read-write")
    }

    /// Returns the same as [`url`](Self::url), as a key-value string.
    #[must_use]
    pub fn key_values(&self) -> String {
        let hosts = self.each(|server| server.home.display().to_string());
        let ports = self.each(|server| server.port.to_string());
        format!("host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs=read-write")
    }

    /// The order of the hosts never changes, so the primary is sometimes the second host.
    fn each(&self, part: impl Fn(&PrivateServer) -> String) -> String {
        let mut servers = [&self.primary, &self.standby];
        servers.sort_by_key(|server| server.port);
        servers.map(part).join(",")
    }

    /// Waits until the standby has replayed everything that the primary has committed so far.
    pub fn wait_for_standby(&self) -> Result<()> {
        let committed: String = diesel::select(diesel::dsl::sql::<Text>("pg_current_wal_lsn()::text"))
            .get_result(&mut PgConnection::establish(&self.primary.url())?)?;
        until_true(&self.standby, &format!("pg_last_wal_replay_lsn() >= '{committed}'"))
    }

    /// Sets whether commits wait for the standby.
    pub fn set_replication(&self, replication: Replication) -> Result<()> {
        let names = if replication == Replication::Synchronous { "standby" } else { "" };
        let mut conn = PgConnection::establish(&self.primary.url())?;
        conn.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"))?;
        conn.batch_execute("SELECT pg_reload_conf()")?;
        until_true(&self.primary, &format!("current_setting('synchronous_standby_names') = '{names}'"))?;
        if replication == Replication::Synchronous {
            until_true(
                &self.primary,
                "EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming')",
            )?;
        }
        Ok(())
    }

    /// Promotes the standby. It becomes the [`primary`](Self::primary), and its commits do not wait for a standby.
    ///
    /// The method does not change the old primary. Stop, kill or pause it before.
    pub fn promote(&mut self) -> Result<()> {
        std::mem::swap(&mut self.primary, &mut self.standby);
        PgConnection::establish(&self.primary.url())?.batch_execute("SELECT pg_promote()")?;
        until_true(&self.primary, "NOT pg_is_in_recovery()")?;
        self.set_replication(Replication::Asynchronous)
    }

    /// Starts the old primary again as the standby of the new one.
    ///
    /// `pg_rewind` removes the commits that the new primary did not receive. If that program is missing, the data of
    /// the new primary is copied instead.
    pub fn rejoin(&mut self, replication: Replication) -> Result<()> {
        self.standby.kill()?;
        let rewind = self.standby.bin.join("pg_rewind");
        if rewind.exists() {
            // pg_rewind learns the new timeline from the last checkpoint.
            PgConnection::establish(&self.primary.url())?.batch_execute("CHECKPOINT")?;
            run(as_server_user(&rewind, &self.standby.home)
                .arg("--no-sync")
                .arg(format!("--target-pgdata={}/data", self.standby.home.display()))
                .arg(format!("--source-server={}", self.primary.url())))?;
        } else {
            copy_data(&self.primary, &self.standby)?;
        }
        self.start_standby(replication)
    }

    fn start_standby(&mut self, replication: Replication) -> Result<()> {
        self.standby.set_standby(true)?;
        let follows = format!(
            "primary_conninfo=host={} port={} user=postgres application_name=standby",
            self.primary.home.display(),
            self.primary.port
        );
        self.standby.settings.retain(|setting| !setting.starts_with("primary_conninfo="));
        self.standby.settings.push(follows);
        self.standby.start()?;
        until_true(&self.primary, "EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')")?;
        self.set_replication(replication)
    }
}

fn without_data() -> Result<PrivateServer> {
    let mut server = PrivateServer::without_data(binaries::programs()?, free_port()?)?;
    // pg_rewind needs whole pages.
    let settings = ["listen_addresses=127.0.0.1", "full_page_writes=on"];
    server.settings.extend(settings.map(str::to_owned));
    Ok(server)
}

/// Makes a base backup with the server's functions and `cp`, because not every distribution has `pg_basebackup`.
fn copy_data(from: &PrivateServer, to: &PrivateServer) -> Result<()> {
    let mut conn = PgConnection::establish(&from.url())?;
    let is_14 =
        diesel::select(diesel::dsl::sql::<Bool>("current_setting('server_version_num')::int < 150000"))
            .get_result(&mut conn)?;
    let (start, stop) = if is_14 {
        ("pg_start_backup('copy', true, false)", "pg_stop_backup(false, false)")
    } else {
        ("pg_backup_start('copy', true)", "pg_backup_stop(false)")
    };
    conn.batch_execute(&format!("SELECT {start}"))?;

    let data = to.home.join("data");
    let _ = fs::remove_dir_all(&data);
    run(as_server_user("mkdir".as_ref(), &to.home).args(["-m", "700", "data"]))?;
    let mut copy = as_server_user("cp".as_ref(), &to.home);
    copy.arg("-a").arg("-t").arg(&data);
    for entry in fs::read_dir(from.home.join("data"))? {
        let entry = entry?;
        if !["pg_wal", "postmaster.pid", "postmaster.opts"].iter().any(|own| entry.file_name() == *own) {
            copy.arg(entry.path());
        }
    }
    run(&mut copy)?;
    run(as_server_user("mkdir".as_ref(), &data).args(["-m", "700", "pg_wal"]))?;

    let label: String = diesel::select(diesel::dsl::sql::<Text>(&format!("(SELECT labelfile FROM {stop})")))
        .get_result(&mut conn)?;
    fs::write(data.join("backup_label"), label)?;
    give_to_server_user(&File::open(data.join("backup_label"))?)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{} failed: {said}{complained}", command.get_program().to_string_lossy()).into())
}

fn until_true(server: &PrivateServer, condition: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut conn = PgConnection::establish(&server.url())?;
    loop {
        let holds = diesel::select(diesel::dsl::sql::<diesel::sql_types::Nullable<Bool>>(condition));
        if holds.get_result::<Option<bool>>(&mut conn)? == Some(true) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let log = fs::read_to_string(server.home.join("log")).unwrap_or_default();
            return Err(format!("a server never came to {condition}:\n{log}").into());
        }
        thread::sleep(Duration::from_millis(10));
    }
}
