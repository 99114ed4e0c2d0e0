//! What adapters promise, as suites that any implementation can be held against: those that are here, and yours.

mod bus;
mod source;
mod tier;

pub use bus::BusSuite;
pub use source::{SourceSuite, carries_out_once};
pub use tier::TierSuite;
