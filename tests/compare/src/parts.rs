//! The parts of the comparison: one file and one subcommand each.

pub mod cold_start;
pub mod growth;
pub mod hit_ratio;
pub mod latency;
pub mod memory;
pub mod swap;
pub mod tax;
pub mod throughput;
