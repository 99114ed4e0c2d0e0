//! Runs policy modules: WebAssembly components, by whomever, that must not be able to hurt their host.
//!
//! One wasmtime engine serves the whole process. A module is checked and compiled once ([`Compiled`]), and kept
//! compiled on disk ([`code_cache`]). Each shard of each cache runs an [`instance`] of its own, in a store of its own:
//! nothing is shared between two of them, and to drop the store is to free all that the guest ever held.
//!
//! What holds a guest:
//!
//! - **Time.** Every call has a deadline. A [`ticker`] advances the engine's epoch every few milliseconds, which
//!   compiled code compares at each loop and call; a call that has seen too many ticks is stopped.
//! - **Memory.** A limit that grows with what the host itself asked the module to keep in mind ([`limits`]).
//! - **Answers.** No call may hand the host more than a true answer can need, whatever length it claims.
//! - **Imports.** None, or an empty WASI: [`wasi`].
//!
//! Everything is synchronous, with wasmtime's support for concurrent guests off: a call costs half as much, and may be
//! made from within an async task as well as from outside of one.
//!
//! A module decides alike on every machine: what WebAssembly leaves open is refused (relaxed SIMD, threads), but for the
//! bits of a NaN. To make those the same would cost a policy that computes with floats a sixth of its time, and other
//! hosts (V8, for one) do not: a module must not look at them, and what a comparison says of a NaN is the same
//! everywhere.

mod code_cache;
mod instance;
mod limits;
mod module;
pub(crate) mod steps;
mod ticker;
mod wasi;

use std::sync::OnceLock;

pub(crate) use instance::open;
pub(crate) use limits::Bounds;
pub(crate) use module::{Compiled, compile};

/// What wasmtime makes of the world `eviction-module`. Parameters are borrowed, so that a column of integers is lowered
/// by copying memory straight from the host's batch.
#[allow(missing_docs, unreachable_pub, clippy::undocumented_unsafe_blocks)]
mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "eviction-module",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

/// What wasmtime makes of the world `patterns-module`. Nothing in it is long: what a step is told and answers is owned.
#[allow(missing_docs, unreachable_pub, clippy::undocumented_unsafe_blocks)]
pub(crate) mod generated_patterns {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "patterns-module",
        additional_derives: [PartialEq],
    });
}

/// The engine of this process.
///
/// # Errors
/// What wasmtime says where it does not support this machine.
fn engine() -> Result<&'static wasmtime::Engine, String> {
    static ENGINE: OnceLock<Result<wasmtime::Engine, String>> = OnceLock::new();
    ENGINE
        .get_or_init(|| wasmtime::Engine::new(&config()).map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(Clone::clone)
}

fn config() -> wasmtime::Config {
    let mut config = wasmtime::Config::new();
    config
        .concurrency_support(false)
        .epoch_interruption(true)
        // A guest that recurses is stopped here, and a thread of the user's may have no more than twice as much.
        .max_wasm_stack(256 << 10)
        .cranelift_opt_level(wasmtime::OptLevel::Speed)
        .wasm_relaxed_simd(false)
        // A module's own names and frames are not worth their cost: a trap's message is what its author printed.
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .native_unwind_info(cfg!(windows));
    if let Some(bytes) = scarce_address_space() {
        // Reserving 4 GiB for each memory saves the checks of bounds, but not where the user counts addresses.
        config.memory_reservation(bytes).memory_guard_size(64 << 10);
    }
    config
}

/// How much address space to reserve for a memory, where the process was given a limit of it (`ulimit -v`).
fn scarce_address_space() -> Option<u64> {
    #[cfg(unix)]
    {
        let limit = rustix::process::getrlimit(rustix::process::Resource::As);
        limit.current.map(|_| 0)
    }
    #[cfg(not(unix))]
    None
}
