//! What the tests of the command share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

/// Runs the command with words that hold no spaces.
pub(crate) fn larder(words: &str, directory: &Path) -> Output {
    let words = words.split_whitespace();
    Command::new(env!("CARGO_BIN_EXE_larder")).args(words).current_dir(directory).output().expect("larder runs")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An empty directory of this name; one for each test.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("a scratch directory");
    directory
}
