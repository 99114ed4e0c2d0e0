//! A MariaDB of a test's own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Server, or_skip};

/// The password of the user `larder`.
pub const PASSWORD: &str = "s3cret/word";

/// Starts one; none if it is not installed.
pub fn start() -> Option<Server> {
    let program = or_skip("mariadbd", "mariadb-server")?;
    let install = or_skip("mariadb-install-db", "mariadb-server")?;
    Some(Server::start(&program, configure(install)))
}

/// Starts one again, in the directory and on the port of one that was killed.
pub fn start_again((directory, port): (tempfile::TempDir, u16)) -> Server {
    let [program, install] =
        ["mariadbd", "mariadb-install-db"].map(|name| or_skip(name, "mariadb-server").expect("it was there"));
    Server::start_in(directory, port, &program, configure(install))
}

/// Where it is to be reached.
pub fn url(port: u16) -> String {
    format!("mysql://larder:{}@127.0.0.1:{port}/shop", PASSWORD.replace('/', "%2F"))
}

fn configure(install: PathBuf) -> impl Fn(&mut Command, u16, &Path) {
    // Root has to say that it is meant.
    let as_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let user = if as_root { &["--user=root"][..] } else { &[] };
    move |command, port, directory| {
        let (data, init, temporary) = (directory.join("data"), directory.join("init.sql"), directory.join("tmp"));
        // Each its own: one that starts removes what looks like a dead one's temporary tables.
        fs::create_dir_all(&temporary).expect("a directory");
        if !data.exists() {
            let mut installing = Command::new(&install);
            installing.arg("--no-defaults").arg(format!("--datadir={}", data.display())).args(user);
            installing.env("TMPDIR", &temporary);
            installing.args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
            let output = installing.stdin(Stdio::null()).output().expect("mariadb-install-db starts");
            assert!(output.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&output.stderr));
        }
        let sql = format!(
            "create database if not exists shop;\ncreate user if not exists 'larder'@'127.0.0.1' identified by '{PASSWORD}';\n\
             grant all on *.* to 'larder'@'127.0.0.1';\n"
        );
        fs::write(&init, sql).expect("a file");
        command.arg("--no-defaults").arg(format!("--datadir={}", data.display())).args(user);
        command.arg(format!("--init-file={}", init.display()));
        command.arg(format!("--tmpdir={}", temporary.display()));
        command.arg(format!("--socket={}", directory.join("socket").display()));
        command.arg(format!("--pid-file={}", directory.join("pid").display()));
        command.args([&format!("--port={port}"), "--bind-address=127.0.0.1", "--skip-log-bin", "--skip-name-resolve"]);
        command.args([
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=32M",
            "--character-set-server=utf8mb4",
        ]);
    }
}
