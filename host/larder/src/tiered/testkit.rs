//! What adapters promise, as suites that any implementation can be held against: those that are here, and yours. And the
//! steps of a patterns module, one by one: [`steps`].

mod bus;
#[cfg(any(feature = "disk", feature = "journal"))]
#[doc(hidden)]
pub mod platter;
mod source;
pub mod steps;
mod tier;

pub use bus::BusSuite;
pub use source::{SourceSuite, carries_out_once};
pub use tier::TierSuite;
