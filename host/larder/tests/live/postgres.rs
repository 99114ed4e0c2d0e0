//! A PostgreSQL of a test's own. It refuses to run as root, so root starts it as the user `postgres` of Debian's package.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Server, or_skip};

/// The password of its only user, `larder`.
pub const PASSWORD: &str = "s3cret/word";

/// Starts one; none if it is not installed.
pub fn start() -> Option<Server> {
    let program = or_skip("postgres", "postgresql")?;
    Some(Server::start(&program, configure(&program)))
}

/// Starts one again, in the directory and on the port of one that was killed.
pub fn start_again((directory, port): (tempfile::TempDir, u16)) -> Server {
    let program = or_skip("postgres", "postgresql").expect("it was there");
    Server::start_in(directory, port, &program, configure(&program))
}

/// Where it is to be reached.
pub fn url(port: u16) -> String {
    format!("postgres://larder:{}@127.0.0.1:{port}/postgres", PASSWORD.replace('/', "%2F"))
}

fn configure(program: &Path) -> impl Fn(&mut Command, u16, &Path) + use<> {
    let initdb = program.with_file_name("initdb");
    move |command, port, directory| {
        let data = directory.join("data");
        if !data.exists() {
            initialize(&initdb, directory, &data);
        }
        // What the process before it has left: its own, for nobody else writes here.
        drop(fs::remove_file(data.join("postmaster.pid")));
        as_postgres(command);
        command.arg("-D").arg(&data).args(["-F", "-p", &port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=50"] {
            command.args(["-c", setting]);
        }
    }
}

fn initialize(initdb: &PathBuf, directory: &Path, data: &Path) {
    let password = directory.join("password");
    fs::write(&password, PASSWORD).expect("a file");
    if let Some((user, group)) = postgres_user() {
        chown(directory, Some(user), Some(group)).expect("root may");
        chown(&password, Some(user), Some(group)).expect("root may");
    }
    let mut command = Command::new(initdb);
    as_postgres(&mut command);
    command.arg("-D").arg(data).args(["-U", "larder", "-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-sync"]);
    command.arg("--pwfile").arg(&password);
    let output = command.stdin(Stdio::null()).output().expect("initdb starts");
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
}

fn as_postgres(command: &mut Command) {
    if let Some((user, group)) = postgres_user() {
        command.uid(user).gid(group);
    }
}

/// As whom it is to run: `postgres`, where root runs the test.
fn postgres_user() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").ok()?.uid() != 0 {
        return None;
    }
    let id = |kind| {
        let output = Command::new("id").args([kind, "postgres"]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    Some((id("-u")?, id("-g")?))
}
