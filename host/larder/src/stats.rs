//! What a cache did.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use crate::Cache;
use crate::cache::Inner;
use crate::eviction::Fault;

/// Why an entry left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RemovalCause {
    /// It expired.
    Expired,
    /// It was removed or invalidated.
    Explicit,
    /// Its value was replaced by another.
    Replaced,
    /// The policy chose it because the cache was full.
    Size,
}

impl RemovalCause {
    /// Whether nobody asked for it: it expired, or was evicted for size.
    pub fn was_evicted(self) -> bool {
        matches!(self, RemovalCause::Expired | RemovalCause::Size)
    }
}

/// What a cache did since it was built. From [`Cache::stats`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Loads that brought a value.
    pub loads: u64,
    /// Loads that failed.
    pub load_failures: u64,
    /// The time that loads took together. Where they are shorter than a microsecond each, it is an estimate: one in eight is
    /// timed, as long as that is so.
    pub load_time: Duration,
    /// Entries that left because the cache was full; what a policy would not keep when it came (what weighs more than
    /// the capacity, above all) included.
    pub evictions: u64,
    /// Entries that left because they expired.
    pub expirations: u64,
    /// Entries that were removed or invalidated. (Those of [`Cache::remove`] included.)
    pub invalidations: u64,
    /// Values that were replaced.
    pub replacements: u64,
    /// Calls of the policy.
    pub policy_calls: u64,
    /// The time that they took together.
    pub policy_time: Duration,
    /// Wrong answers and traps of policies.
    pub faults: u64,
    /// Of these, the traps, deadlines and memory limits that ended an instance.
    pub traps: u64,
    /// Of the evictions, those that the host chose itself because of a fault.
    pub fallback_evictions: u64,
    /// Swaps of the policy.
    pub swaps: u64,
    /// The bytes that the policy instances hold.
    pub policy_memory: usize,
}

impl Stats {
    /// Hits among all reads; 0 where there were none.
    pub fn hit_ratio(&self) -> f64 {
        self.hits as f64 / ((self.hits + self.misses).max(1)) as f64
    }
}

/// A fault of a policy, with the name of the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultReport {
    /// The name of the module, as its card says.
    pub module: String,
    /// What it did.
    pub fault: Fault,
}

impl std::fmt::Display for FaultReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "policy `{}`: {}", self.module, self.fault)
    }
}

impl<K, V, S> Cache<K, V, S> {
    /// What the cache did so far. Costs a few additions for each shard and thread.
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// How many shards there are, each with a policy instance of its own.
    pub fn shard_count(&self) -> usize {
        self.inner.shards.len()
    }

    /// The first faults of each policy (16 for each shard), with the module's name.
    pub fn faults(&self) -> Vec<FaultReport> {
        let mut faults = Vec::new();
        for shard in &self.inner.shards {
            faults.extend(
                shard
                    .seat()
                    .tally
                    .recent_faults
                    .iter()
                    .map(|(module, fault)| FaultReport { module: module.to_string(), fault: fault.clone() }),
            );
        }
        faults
    }
}

impl<K, V, S> Inner<K, V, S> {
    /// Hits and misses.
    pub(crate) fn reads(&self) -> (u64, u64) {
        self.shards.iter().map(|shard| shard.touches.counts()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    pub(crate) fn stats(&self) -> Stats {
        let (hits, misses) = self.reads();
        let loads = self.board.loads();
        let mut stats = Stats {
            hits,
            misses,
            loads: loads.succeeded,
            load_failures: loads.failed,
            load_time: Duration::from_nanos(loads.nanos),
            expirations: self.lazily_expired.load(Ordering::Relaxed),
            invalidations: self.explicit.load(Ordering::Relaxed),
            replacements: self.shards.iter().map(|shard| shard.touches.replacements()).sum(),
            swaps: self.control.swaps(),
            ..Stats::default()
        };
        for shard in &self.shards {
            let seat = shard.seat();
            stats.evictions += seat.tally.evicted;
            stats.expirations += seat.tally.expired;
            stats.policy_calls += seat.tally.policy_calls;
            stats.policy_time += Duration::from_nanos(seat.tally.policy_nanos);
            stats.faults += seat.tally.faults;
            stats.traps += seat.tally.traps;
            stats.fallback_evictions += seat.tally.fallback_evictions;
            stats.policy_memory += seat.memory();
        }
        stats
    }
}
