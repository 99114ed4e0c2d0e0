//! Builds the built-in policies: the components of `guest/modules`, as part of the ordinary `cargo build`.
//!
//! A nested cargo builds every example of `larder-modules` for `wasm32-wasip2`, into a target directory of its own below
//! the outer one, shared by debug and release builds; what did not change is not built again. The list of built-ins is
//! what cargo says it built: a policy joins by being an `[[example]]` there, under the name that its card states.
//!
//! A package from crates.io has no `guest/` beside it. It carries the same components, built, in `components/`
//! (`.ci/package` puts them there).

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio, exit},
};

const TARGET: &str = "wasm32-wasip2";

/// The tables of built-ins, and by which interface a component belongs in one: a component has the names of what it
/// exports in plain text.
const TABLES: [(&str, &str); 2] =
    [("BUILTINS", "larder:policy/eviction@"), ("BUILTIN_PATTERNS", "larder:policy/patterns@")];

/// What the guests depend on, from the root of the repository.
const WATCHED: [&str; 9] = [
    "wit",
    "guest/sdk/src",
    "guest/sdk/Cargo.toml",
    "guest/modules/src",
    "guest/modules/components",
    "guest/modules/Cargo.toml",
    "Cargo.toml",
    "Cargo.lock",
    "rust-toolchain.toml",
];

fn main() {
    if let Err(error) = build() {
        for line in error.to_string().lines() {
            println!("cargo::error={line}");
        }
        exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let package = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(var("OUT_DIR")?);
    println!("cargo::rerun-if-changed=build.rs");

    let root = package.join("../..");
    let built = if root.join("guest/modules/Cargo.toml").is_file() {
        for path in WATCHED {
            println!("cargo::rerun-if-changed={}", root.join(path).display());
        }
        from_source(&root.canonicalize()?, &out)?
    } else {
        println!("cargo::rerun-if-changed=components");
        prebuilt(&package.join("components"))?
    };
    if built.is_empty() {
        return Err("no built-in policy was found: `guest/modules/Cargo.toml` lists none as an [[example]]".into());
    }
    generate(&built, &out)
}

/// The components that a package brings along.
fn prebuilt(directory: &Path) -> Result<BTreeMap<String, PathBuf>, Box<dyn Error>> {
    let files = fs::read_dir(directory).map_err(|error| {
        format!("neither `guest/modules` nor the built components were found in {}: {error}", directory.display())
    })?;
    let mut built = BTreeMap::new();
    for file in files {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "wasm")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            built.insert(name.to_string(), path);
        }
    }
    Ok(built)
}

/// Builds the components. Returns where each is, by the name of its example.
fn from_source(root: &Path, out: &Path) -> Result<BTreeMap<String, PathBuf>, Box<dyn Error>> {
    ensure_target()?;
    let mut cargo = Command::new(var("CARGO")?);
    clean(&mut cargo);
    let output = cargo
        .current_dir(root)
        .args(["build", "--package", "larder-modules", "--features", "components", "--examples"])
        .args(["--target", TARGET, "--profile", "guest", "--message-format", "json-render-diagnostics"])
        .arg("--target-dir")
        .arg(guest_target(out))
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo could not be run to build the built-in policies: {error}"))?;
    if !output.status.success() {
        return Err("the built-in policies (guest/modules) do not build: see the errors of cargo below\n\
             to see them alone, run `cargo build -p larder-modules --features components --examples --target wasm32-wasip2`"
            .into());
    }
    let mut built = BTreeMap::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if message["reason"] != "compiler-artifact" || message["target"]["kind"] != serde_json::json!(["example"]) {
            continue;
        }
        let name = message["target"]["name"].as_str().ok_or("cargo named an example without a name")?;
        let files = message["filenames"].as_array().into_iter().flatten().filter_map(|file| file.as_str());
        let file = files.into_iter().find(|file| file.ends_with(".wasm"));
        built.insert(name.to_string(), PathBuf::from(file.ok_or(format!("cargo built no component for `{name}`"))?));
    }
    Ok(built)
}

/// Makes sure that the compiler can build for the guests' target, or says how to.
fn ensure_target() -> Result<(), Box<dyn Error>> {
    if has_target()? {
        return Ok(());
    }
    let toolchain = env::var("RUSTUP_TOOLCHAIN").ok();
    let mut add = vec!["target".to_string(), "add".to_string(), TARGET.to_string()];
    if let Some(toolchain) = &toolchain {
        add.extend(["--toolchain".to_string(), toolchain.clone()]);
    }
    println!("cargo::warning=the target {TARGET} is missing: running `rustup {}`", add.join(" "));
    let rustup = Command::new("rustup").args(&add).stdout(Stdio::null()).stderr(Stdio::inherit()).status();
    if rustup.is_ok_and(|status| status.success()) && has_target()? {
        return Ok(());
    }
    Err(format!(
        "the built-in policies are built for {TARGET}, which this compiler has no standard library for; run\n\
         \n    rustup {}\n\n\
         (without rustup, install your distribution's standard library of Rust for {TARGET})",
        add.join(" ")
    )
    .into())
}

fn has_target() -> Result<bool, Box<dyn Error>> {
    let output = Command::new(var("RUSTC")?).args(["--print", "target-libdir", "--target", TARGET]).output()?;
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_string();
    Ok(output.status.success() && Path::new(&directory).is_dir())
}

/// Takes from the nested cargo what the outer one, or a wrapper such as clippy, Miri or a coverage tool, set for the
/// host's own code: its flags would break the guests, or make them a different file for each way of building.
fn clean(cargo: &mut Command) {
    const GONE: [&str; 15] = [
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
        "OUT_DIR",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "LLVM_PROFILE_FILE",
    ];
    // The user's choices that hold for any cargo: where things are fetched from and kept, and the job server.
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_TERM_",
        "CARGO_MAKEFLAGS",
    ];
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let of_cargo = name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept));
        if of_cargo || name.starts_with("DEP_") || GONE.contains(&name) {
            cargo.env_remove(name);
        }
    }
}

/// A target directory below the outer one, the same for every profile.
fn guest_target(out: &Path) -> PathBuf {
    let outer = out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    outer.unwrap_or(out).join("larder-guest")
}

/// Writes a table for each role, and copies the components beside them.
fn generate(built: &BTreeMap<String, PathBuf>, out: &Path) -> Result<(), Box<dyn Error>> {
    let mut tables = TABLES.map(|(table, _)| format!("#[allow(dead_code)]\nstatic {table}: &[(&str, &[u8])] = &[\n"));
    for (name, path) in built {
        let copy = out.join(format!("{name}.wasm"));
        let component = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        write_if_changed(&copy, &component)?;
        for (table, (_, interface)) in tables.iter_mut().zip(TABLES) {
            if component.windows(interface.len()).any(|window| window == interface.as_bytes()) {
                writeln!(table, "    ({name:?}, include_bytes!({copy:?})),")?;
            }
        }
    }
    write_if_changed(&out.join("builtins.rs"), tables.map(|table| table + "];\n").concat().as_bytes())
}

fn write_if_changed(path: &Path, content: &[u8]) -> Result<(), Box<dyn Error>> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn var(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("cargo did not set {name}: {error}").into())
}
