//! Runs a policy natively: against the contract, and over traces.

mod simulator;

pub use simulator::{Simulator, fingerprint};
