//! Rule 9, in other hosts: `npm test` in `host/js` replays the corpus in Node and in workerd.
//!
//! Where Node is missing, or its packages cannot be had, the test says so and passes; under CI (`CI=true`) it fails.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

#[test]
fn javascript_hosts_decide_as_recorded() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host/js");
    if let Err(why) = prepare(&directory) {
        let message = format!("SKIPPED: the corpus was not replayed in Node and workerd: {why}");
        assert!(env::var("CI").is_err(), "{message}");
        // Past the capture of the test harness, which would hide it.
        use std::io::Write as _;
        writeln!(std::io::stderr(), "{message}").expect("standard error is open");
        return;
    }
    let output = npm(&directory, &["test"]).output().expect("it ran a moment ago");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "`npm test` in host/js failed\n{out}\n{err}");
    let policies = larder::Policy::builtins().map(String::from);
    let sets = larder_conformance::patterns::sets().expect("the corpus can be listed");
    let names: Vec<String> = policies.chain(sets.iter().map(|set| format!("patterns/{set}"))).collect();
    for runtime in ["Node", "workerd"] {
        for name in &names {
            let line = format!("{name} decides in {runtime} as recorded");
            let passed =
                out.lines().any(|said| said.contains(&line) && !said.contains("not ok") && !said.contains('✖'));
            assert!(passed, "`npm test` in host/js never said that {line}\n{out}");
        }
    }
}

/// Makes sure that Node is there and the packages of the lock file are installed.
fn prepare(directory: &Path) -> Result<(), String> {
    const LEAST: u32 = 20;
    let node =
        Command::new("node").arg("--version").output().map_err(|error| format!("`node` does not run: {error}"))?;
    let version = String::from_utf8_lossy(&node.stdout).trim().to_string();
    let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < LEAST) {
        return Err(format!("Node {LEAST} or later is needed, and `node --version` says {version:?}"));
    }
    // npm keeps a copy of the lock file of what is installed; it is older than ours if ours changed.
    let modified = |path: PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let installed = modified(directory.join("node_modules/.package-lock.json"));
    if installed.is_some() && installed >= modified(directory.join("package-lock.json")) {
        return Ok(());
    }
    // Not `npm ci`: it wants entries in the lock for platforms whose packages a registry may not hold.
    let install = npm(directory, &["install", "--ignore-scripts", "--no-audit", "--no-fund"]).output();
    let install = install.map_err(|error| format!("`npm` does not run: {error}"))?;
    if install.status.success() {
        return Ok(());
    }
    Err(format!("`npm install` in host/js failed\n{}", String::from_utf8_lossy(&install.stderr)))
}

fn npm(directory: &Path, arguments: &[&str]) -> Command {
    let mut npm = Command::new(if cfg!(windows) { "npm.cmd" } else { "npm" });
    npm.args(arguments).current_dir(directory);
    // Its cargo builds guests into the directory that the host's build used: not one of those that a wrapper of this
    // test, such as a coverage tool, set flags for.
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "LLVM_PROFILE_FILE"] {
        npm.env_remove(name);
    }
    npm
}
