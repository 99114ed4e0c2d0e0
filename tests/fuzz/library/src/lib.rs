//! What the fuzz targets of this package do with bytes: see `../README.md`.

pub mod config;
pub mod disk;
pub mod keys;
pub mod modules;

#[path = "../../src/redb_files.rs"]
mod redb_files;
