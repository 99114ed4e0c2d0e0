//! Caches of several tiers, over simulated time, networks, disks and sources.

mod hostile;
mod network;
mod world;

mod coherence;
mod containment;
#[cfg(feature = "disk")]
mod disk;
#[cfg(all(feature = "disk", feature = "testkit"))]
mod disk_faults;
mod fleet;
#[cfg(feature = "journal")]
mod journal;
#[cfg(all(feature = "journal", unix))]
mod journal_kill;
mod owed;
mod reads_and_writes;
#[cfg(feature = "testkit")]
mod suite;
#[cfg(feature = "journal")]
mod write_behind;
