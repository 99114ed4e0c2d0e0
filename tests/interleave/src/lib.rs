//! The cache's shared structures, from the files of `host/larder`, with their own unit tests:
//!
//! ```text
//! cd tests/interleave
//! cargo test                                                                  # real threads
//! RUSTFLAGS="--cfg shuttle" cargo test --release --target-dir target/shuttle  # 20,000 interleavings
//! MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test                 # undefined behaviour, data races
//! ```
//!
//! `.ci/nightly` runs them under Miri, AddressSanitizer, ThreadSanitizer and valgrind, of those that are installed.
//!
//! Shuttle prints the schedule of a failure; `shuttle::replay` runs it again.
#![allow(dead_code, unreachable_pub, rustdoc::broken_intra_doc_links)]

#[path = "../../../host/larder/src/eviction.rs"]
pub mod eviction;
#[path = "../../../host/larder/src/flights.rs"]
mod flights;
#[path = "../../../host/larder/src/locks.rs"]
mod locks;
#[path = "../../../host/larder/src/segment.rs"]
mod segment;
#[path = "../../../host/larder/src/shard.rs"]
mod shard;
#[path = "../../../host/larder/src/stopwatch.rs"]
mod stopwatch;
#[path = "../../../host/larder/src/sync.rs"]
mod sync;
#[path = "../../../host/larder/src/table.rs"]
mod table;
#[path = "../../../host/larder/src/timers.rs"]
mod timers;
#[path = "../../../host/larder/src/touches.rs"]
mod touches;

/// As in `host/larder/src/stats.rs`, which needs the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalCause {
    Expired,
    Explicit,
    Replaced,
    Size,
}
