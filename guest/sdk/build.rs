//! Encodes the world of each role, as a component of that role carries it in a custom section.
//!
//! wit-bindgen does that for the world that it generates bindings for. The SDK has one set of bindings for all roles (two
//! in one crate collide), and a module exports one role only, so the section must name less than the bindings have.

use std::{env, error::Error, fs, path::Path};

use wit_component::{StringEncoding, metadata};
use wit_parser::Resolve;

const WORLDS: [&str; 2] = ["eviction-module", "patterns-module"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=wit");
    let out = env::var("OUT_DIR")?;
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("wit"))?;
    let mut constants = String::new();
    for world in WORLDS {
        let id = resolve.select_world(&[package], Some(world))?;
        let section = metadata::encode(&resolve, id, StringEncoding::UTF8, None)?;
        let (name, length) = (world.replace('-', "_").to_uppercase(), section.len());
        fs::write(Path::new(&out).join(world), section)?;
        constants.push_str(&format!(
            "/// `{world}`, encoded.\npub const {name}: &[u8; {length}] = include_bytes!({world:?});\n"
        ));
    }
    Ok(fs::write(Path::new(&out).join("worlds.rs"), constants)?)
}
