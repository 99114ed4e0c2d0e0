//! Embeds the guest SDK, as text, for `larder policy new`: an author needs no checkout of Larder and no registry that has
//! `larder-guest`.
//!
//! A package from crates.io has no repository around it. It carries what `larder policy new` writes, in `sdk/`
//! (`.ci/package` puts it there).

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let root = here.join("../..");
    let in_repository = root.join("guest/sdk/Cargo.toml").is_file();
    let (sdk, rest) =
        if in_repository { (root.join("guest/sdk"), root.clone()) } else { (here.join("sdk"), here.join("sdk")) };
    let mut files = vec![];
    for (from, to) in [(sdk.join("src"), "src"), (rest.join("wit"), "wit")] {
        println!("cargo::rerun-if-changed={}", from.display());
        collect(&from, to, &mut files)?;
    }
    files.push(("build.rs".into(), sdk.join("build.rs")));
    for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
        files.push((license.into(), rest.join(license)));
    }
    files.sort();
    let mut table = String::from("pub(super) static SDK: &[(&str, &str)] = &[\n");
    for (name, path) in &files {
        println!("cargo::rerun-if-changed={}", path.display());
        let path = path.canonicalize()?;
        let _ = writeln!(table, "    ({name:?}, include_str!({:?})),", path.display().to_string());
    }
    // Cargo leaves a directory with a `Cargo.toml` out of a package: there it has another name.
    let manifest = if in_repository {
        standalone(&read(&sdk.join("Cargo.toml"))?, &read(&root.join("Cargo.toml"))?)
    } else {
        read(&sdk.join("Cargo.toml.in"))?
    };
    let _ = writeln!(table, "    (\"Cargo.toml\", {manifest:?}),\n];");
    fs::write(PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("sdk.rs"), table)
}

fn read(path: &Path) -> io::Result<String> {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read_to_string(path)
}

fn collect(from: &Path, to: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, name) = (entry.path(), format!("{to}/{}", entry.file_name().to_string_lossy()));
        if path.is_dir() {
            collect(&path, &name, files)?;
        } else if name.ends_with(".rs") || name.ends_with(".wit") {
            files.push((name, path));
        }
    }
    Ok(())
}

/// The manifest of the SDK without a workspace: what it inherits is written out, the lints of this repository left out.
fn standalone(manifest: &str, workspace: &str) -> String {
    let mut out = String::new();
    for line in manifest.replace("[lints]\nworkspace = true\n", "").lines() {
        let inherited = line.split_once(".workspace = true").map(|(key, _)| format!("{key} = "));
        let line = inherited.map_or(Some(line), |key| workspace.lines().find(|line| line.starts_with(&key)));
        out += line.unwrap_or_else(|| panic!("the workspace has no value for a line of guest/sdk/Cargo.toml"));
        out.push('\n');
    }
    assert!(!out.contains("workspace"), "guest/sdk/Cargo.toml inherits in a way that build.rs does not know:\n{out}");
    out
}
