//! `larder policy new`: writes a crate that builds to a component with `cargo build` and nothing else.

use std::path::{Path, PathBuf};
use std::{fs, io};

include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

/// Why a crate was not written.
#[derive(Debug, thiserror::Error)]
pub enum ScaffoldError {
    /// Cargo or Larder would not take the name.
    #[error(
        "{0:?} cannot name a policy: use lower-case letters, digits and single hyphens, beginning with a letter, \
         such as my-policy"
    )]
    Name(String),
    /// There is something already.
    #[error("{} is there already and is not an empty directory: choose another name, or another place with --path", .0.display())]
    Exists(PathBuf),
    /// `--sdk` names something else.
    #[error("{} is not the guest SDK: name the directory guest/sdk of a checkout of Larder, or leave --sdk out", .0.display())]
    NotTheSdk(PathBuf),
    /// A file could not be written.
    #[error("cannot write {}: {source}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Names that Cargo refuses for a library or that would clash with a dependency.
const TAKEN: [&str; 9] =
    ["larder-guest", "core", "alloc", "std", "test", "proc-macro", "wit-bindgen", "dlmalloc", "build"];

/// Rust's keywords that a name can be.
const KEYWORDS: &str = "as async await box break const continue crate do dyn else enum extern false final fn for gen if \
                        impl in let loop macro match mod move mut override priv pub ref return self static struct super \
                        trait true try type typeof union unsafe unsized use virtual where while yield abstract become";

fn valid(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.contains("--")
        && !name.ends_with('-')
        && name.len() <= 64
        && !TAKEN.contains(&name)
        && !KEYWORDS.split_ascii_whitespace().any(|keyword| keyword == name)
}

/// Writes the crate `name` into `directory`, which is created, with the SDK beside it, or on the SDK of a checkout.
///
/// # Errors
/// As [`ScaffoldError`] lists; where a file cannot be written, those before it are left.
pub fn write(name: &str, directory: &Path, sdk: Option<&Path>) -> Result<(), ScaffoldError> {
    if !valid(name) {
        return Err(ScaffoldError::Name(name.into()));
    }
    let occupied = match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    if occupied {
        return Err(ScaffoldError::Exists(directory.into()));
    }
    let sdk_path = match sdk {
        None => "larder-guest".to_string(),
        Some(sdk) => {
            let not = || ScaffoldError::NotTheSdk(sdk.into());
            let manifest = fs::read_to_string(sdk.join("Cargo.toml")).map_err(|_| not())?;
            if !manifest.contains("name = \"larder-guest\"") {
                return Err(not());
            }
            sdk.canonicalize().map_err(|_| not())?.display().to_string()
        }
    };
    // As TOML and JSON agree on strings.
    let sdk_path = serde_json::Value::from(sdk_path).to_string();
    let fill = |template: &str| {
        template
            .replace("@NAME@", name)
            .replace("@FILE@", &name.replace('-', "_"))
            .replace("@SDK@", &sdk_path)
            .replace("@REPOSITORY@", env!("CARGO_PKG_REPOSITORY"))
    };
    for (path, template) in [
        ("Cargo.toml", include_str!("../template/Cargo.toml.in")),
        ("rust-toolchain.toml", include_str!("../template/rust-toolchain.toml.in")),
        (".gitignore", include_str!("../template/gitignore.in")),
        ("README.md", include_str!("../template/README.md.in")),
        ("src/lib.rs", include_str!("../template/lib.rs.in")),
    ] {
        put(&directory.join(path), &fill(template))?;
    }
    if sdk.is_none() {
        SDK.iter().try_for_each(|(path, text)| put(&directory.join("larder-guest").join(path), text))?;
    }
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<(), ScaffoldError> {
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    written.map_err(|source| ScaffoldError::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "my-policy", "s3-fifo-2"] {
            assert!(valid(name), "{name}");
        }
        for name in ["", "A", "my_policy", "2q", "-a", "a-", "a--b", "fn", "std", "larder-guest", "../a", "a b", "é"] {
            assert!(!valid(name), "{name}");
        }
    }

    #[test]
    fn the_sdk_that_is_embedded_is_whole_and_stands_alone() {
        let file = |name: &str| SDK.iter().find(|(path, _)| *path == name).map(|(_, text)| *text);
        for name in ["src/lib.rs", "src/kit/lists.rs", "wit/world.wit", "LICENSE-MIT"] {
            assert!(file(name).is_some(), "{name}");
        }
        let manifest = file("Cargo.toml").unwrap();
        assert!(manifest.contains("\nedition = \"2024\"\n") && !manifest.contains("workspace"), "{manifest}");
    }
}
