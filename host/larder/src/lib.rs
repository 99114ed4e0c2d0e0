//! A cache whose eviction policy is a WebAssembly component: swapped live, contained, and never entered on a hit.
//!
//! ```
//! use larder::{Cache, Policy};
//!
//! let cache = Cache::<String, u32>::builder()
//!     .max_capacity(10_000)
//!     .policy(Policy::builtin("s3-fifo")?)
//!     .build()?;
//! cache.insert("apple".into(), 3);
//! assert_eq!(cache.get("apple"), Some(3));
//!
//! // While traffic flows; what is in the cache stays there.
//! let report = cache.swap_policy(Policy::builtin("lru")?)?;
//! assert_eq!(report.evicted, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The parts, from the outside in: [`Cache`] and its [`Builder`] are what users hold; a [`Policy`] is what they name,
//! a [`Module`] what was loaded of it; [`eviction`] is the contract between the two halves.

mod builder;
mod cache;
mod clock;
#[cfg(feature = "config")]
pub mod config;
mod control;
mod engine;
pub mod eviction;
mod flights;
mod locks;
mod patterns;
mod policy;
mod segment;
mod shard;
mod stats;
mod stopwatch;
mod sync;
mod table;
pub mod tiered;
mod timers;
mod touches;

pub use builder::{BuildError, Builder, Expiry};
pub use cache::{Cache, Entry, EntrySelector, Iter, RandomState};
pub use clock::Clock;
#[cfg(feature = "config")]
pub use config::{Config, ConfigError, Stores};
pub use control::{Guard, ShadowError, ShadowReport, SwapError, SwapReport};
pub use patterns::{Patterns, PatternsModule};
pub use policy::{Description, Module, ParameterSpec, Policy, PolicyError, Role, Value};
pub use stats::{FaultReport, RemovalCause, Stats};
pub use tiered::{Tiered, TieredBuilder};
