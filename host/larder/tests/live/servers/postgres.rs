//! A PostgreSQL of a test's own. It refuses to run as root, so root starts it as the user `postgres` of Debian's package.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Server, or_skip};

/// The password of its only user, `larder`.
pub const PASSWORD: &str = "s3cret/word";

/// Starts one; none if it is not installed.
pub fn start() -> Option<Server> {
    let program = or_skip("postgres", "postgresql")?;
    Some(Server::start(&program, configure(&program, false)))
}

/// Starts one that speaks TLS; the certificate of who has signed its own is in its directory: `ca.pem`.
pub fn start_with_tls() -> Option<Server> {
    let (program, _) = (or_skip("postgres", "postgresql")?, or_skip("openssl", "openssl")?);
    Some(Server::start(&program, configure(&program, true)))
}

/// Starts one again, in the directory and on the port of one that was killed.
pub fn start_again((directory, port): (tempfile::TempDir, u16)) -> Server {
    let program = or_skip("postgres", "postgresql").expect("it was there");
    Server::start_in(directory, port, &program, configure(&program, false))
}

/// Where it is to be reached.
pub fn url(port: u16) -> String {
    format!("postgres://larder:{}@127.0.0.1:{port}/postgres", PASSWORD.replace('/', "%2F"))
}

fn configure(program: &Path, tls: bool) -> impl Fn(&mut Command, u16, &Path) + use<> {
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
        if tls {
            certify(directory);
            for (setting, file) in [("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.key")] {
                command.arg("-c").arg(format!("{setting}={}", directory.join(file).display()));
            }
            command.args(["-c", "ssl=on"]);
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

/// Makes an authority, and a certificate by it for 127.0.0.1.
fn certify(directory: &Path) {
    fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1").expect("a file");
    for arguments in [
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names",
    ] {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output();
        let output = output.expect("openssl starts");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let key = directory.join("server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("its owner may");
    if let Some((user, group)) = postgres_user() {
        chown(&key, Some(user), Some(group)).expect("root may");
    }
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
