//! What adapters promise, as suites that any implementation can be held against: those that are here, and yours.

mod source;

pub use source::{SourceSuite, carries_out_once};
