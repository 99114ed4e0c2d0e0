//! `larder policy new` from outside: what it writes, and that what it writes builds and passes its own tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

fn larder(words: &[&str], directory: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_larder")).args(words).current_dir(directory).output().expect("larder runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An empty directory of this test's own.
fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("a scratch directory");
    directory
}

fn cargo(words: &[&str], directory: &Path) {
    // A toolchain that is chosen by the environment, as under `cargo test`, would override the crate's own choice of
    // targets; the crate is built by the compiler that built this test.
    let output = Command::new(env!("CARGO"))
        .args(words)
        .current_dir(directory)
        .env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("new-policy-target"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo {words:?}:\n{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn it_writes_a_crate_and_says_what_is_next() {
    let directory = scratch("writes");
    let output = larder(&["policy", "new", "my-policy"], &directory);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("cargo build --release --target wasm32-wasip2"));
    for file in [
        "Cargo.toml",
        "src/lib.rs",
        "README.md",
        "larder-guest/Cargo.toml",
        "larder-guest/build.rs",
        "larder-guest/wit/eviction.wit",
    ] {
        let written = fs::read_to_string(directory.join("my-policy").join(file)).expect(file);
        let left = ["@NAME@", "@FILE@", "@SDK@", "@REPOSITORY@"].into_iter().find(|mark| written.contains(mark));
        assert_eq!(left, None, "{file}");
    }
}

#[test]
fn it_refuses_what_it_should_not_touch() {
    let directory = scratch("refuses");
    fs::create_dir(directory.join("taken")).expect("mkdir");
    fs::write(directory.join("taken/file"), "precious").expect("write");
    for (words, code, why) in [
        (&["taken"][..], 1, "is there already"),
        (&["Not_A_Name"], 2, "cannot name a policy"),
        (&["fine", "--sdk", "taken"], 2, "is not the guest SDK"),
        (&["fine", "--path", "taken/file"], 1, "is there already"),
    ] {
        let output = larder(&[&["policy", "new"], words].concat(), &directory);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(why), "{words:?}: {}", text(&output.stderr));
    }
    assert!(!directory.join("fine").exists(), "nothing is left of a refusal");
    assert_eq!(fs::read_to_string(directory.join("taken/file")).expect("read"), "precious");
}

#[test]
#[ignore = "builds a crate from scratch: cargo test -p larder-cli --test policy_new -- --ignored"]
fn what_it_writes_builds_and_passes_its_own_tests() {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest/sdk");
    let sdk = sdk.to_str().expect("a path in UTF-8");
    let directory = scratch("builds");
    for (name, more) in [("copied", &[][..]), ("checked-out", &["--sdk", sdk])] {
        let output = larder(&[&["policy", "new", name], more].concat(), &directory);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let made = directory.join(name);
        cargo(&["test", "--quiet"], &made);
        cargo(&["build", "--release", "--target", "wasm32-wasip2", "--quiet"], &made);
        let module = format!("new-policy-target/wasm32-wasip2/release/{}.wasm", name.replace('-', "_"));
        let module = fs::read(Path::new(env!("CARGO_TARGET_TMPDIR")).join(module)).expect("the module");
        // The preamble of a component; a core module has 1 where this has 0x0d, and no layer.
        assert_eq!(module[..8], *b"\0asm\x0d\0\x01\0");
        assert_eq!(memchr::memmem::find(&module, b"wasi:"), None, "a module imports nothing");
    }
}
