//! Runs a policy natively: against the contract, and over traces.
//!
//! - [`check`] runs a policy through random histories and panics with the shortest one that breaks the contract.
//! - [`Suite`] is the same for whatever answers as a policy does ([`Subject`]): a component in a host, say.
//! - [`Simulator`] replays requests and counts hits.
//! - [`patterns`] does the first two for modules of that role.

mod history;
mod oracle;
pub mod patterns;
mod shrink;
mod simulator;
mod suite;

pub use history::{Event, Gap, History, Step, Terms};
pub use oracle::{Clause, Subject, Violation};
pub use simulator::{Simulator, fingerprint};
pub use suite::{Report, Suite, check, check_with};
