//! Real servers for tests: started on free ports of loopback, in directories of their own, and stopped when dropped.
//!
//! Where a server is not installed, [`or_skip`] says so in a line that no test runner swallows, and the test ends; where `CI`
//! is set, that is a failure, so that nothing is skipped there in silence.
#![allow(dead_code, unreachable_pub, reason = "each test that includes this uses its own part")]

pub mod mariadb;
pub mod postgres;

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

use tempfile::TempDir;

/// A server of this test's own.
pub struct Server {
    child: Child,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    directory: TempDir,
}

/// Where a program is, if it is installed: on the path, or where Debian puts servers.
pub fn installed(program: &str) -> Option<PathBuf> {
    let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect())
        .unwrap_or_default();
    versions.sort();
    versions.reverse();
    let more = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    on_path.into_iter().chain(versions).chain(more).map(|place| place.join(program)).find(|path| path.is_file())
}

/// The program, or a line that says what is skipped.
///
/// # Panics
/// Where it is not installed and `CI` is set.
pub fn or_skip(program: &str, package: &str) -> Option<PathBuf> {
    let found = installed(program);
    if found.is_none() {
        let what = std::thread::current().name().unwrap_or("a test").to_string();
        let line = format!("SKIPPED {what}: {program} is not installed (Debian's package {package})");
        assert!(env::var_os("CI").is_none(), "{line}, and CI is set");
        // Not `eprintln`, which the test runner keeps to itself.
        drop(writeln!(io::stderr(), "{line}"));
    }
    found
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("its address").port()
}

impl Server {
    /// Starts a program, told by `command` where to listen and keep its files, and waits until it takes connections.
    ///
    /// # Panics
    /// If it does not, with what it wrote.
    pub fn start(program: &Path, command: impl Fn(&mut Command, u16, &Path)) -> Server {
        let directory = TempDir::new().expect("a directory");
        Self::start_in(directory, free_port(), program, command)
    }

    /// The same in a directory and on a port that are there already: a server that comes back with what it had.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_in(
        directory: TempDir,
        port: u16,
        program: &Path,
        command: impl Fn(&mut Command, u16, &Path),
    ) -> Server {
        let log = directory.path().join("output.log");
        let output = fs::File::options().create(true).append(true).open(&log).expect("a log");
        let mut starting = Command::new(program);
        starting.stdin(Stdio::null()).stdout(output.try_clone().expect("a log")).stderr(output);
        command(&mut starting, port, directory.path());
        let child = starting.spawn().expect("it starts");
        let mut server = Server { child, port, directory };
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = server.child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > Duration::from_secs(60) {
                let said = fs::read_to_string(&log).unwrap_or_default();
                panic!("{} does not listen ({ended:?}):\n{said}", program.display());
            }
            sleep(Duration::from_millis(20));
        }
        server
    }

    /// Its own directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Ends it at once, as a crash would (`kill -9`), and hands out its directory and port, for it to come back.
    ///
    /// # Panics
    /// If it cannot be ended.
    pub fn kill(mut self) -> (TempDir, u16) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
        let directory = std::mem::replace(&mut self.directory, TempDir::new().expect("a directory"));
        (directory, self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
