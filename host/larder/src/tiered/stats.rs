//! What a cache of tiers did.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use super::host::Inner;
use super::{How, Key, Served, Tiered};

/// What a [`Tiered`] did since it was built. From [`Tiered::stats`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TieredStats {
    /// Reads that were served by a copy in tier 0 without asking the module.
    pub near_hits: u64,
    /// Copies that were found in far tiers.
    pub far_hits: u64,
    /// Reads that were served by an operation: all but `near_hits`.
    pub served: u64,
    /// Of these, with a stale copy.
    pub stale: u64,
    /// Of these, with an old copy because the source failed or was slow.
    pub rescued: u64,
    /// Of these, that the source has no such key.
    pub negative: u64,
    /// Reads that ended without a value, because nothing may be loaded for them.
    pub misses: u64,
    /// Reads that failed.
    pub failures: u64,
    /// Operations that waited for another's load.
    pub joined: u64,
    /// Loads that ended.
    pub loads: u64,
    /// Of these, those that failed.
    pub load_failures: u64,
    /// Saves that were begun.
    pub saves: u64,
    /// Refreshes that were begun.
    pub refreshes: u64,
    /// Copies that were not kept because something newer had happened.
    pub fenced: u64,
    /// Far copies that could not be read.
    pub damaged: u64,
    /// Invalidations that a tier or the bus is still owed.
    pub owed: u64,
    /// Loads under way.
    pub loading: u64,
    /// Steps that the module was asked for.
    pub steps: u64,
    /// Its instances that were stopped.
    pub instances_dropped: u64,
    /// Its answers that were wrong.
    pub wrong_answers: u64,
    /// Operations that the host finished by itself.
    pub fallbacks: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(super) far_hits: AtomicU64,
    pub(super) served: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) rescued: AtomicU64,
    pub(super) negative: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) joined: AtomicU64,
    pub(super) loads: AtomicU64,
    pub(super) load_failures: AtomicU64,
    pub(super) saves: AtomicU64,
    pub(super) refreshes: AtomicU64,
    pub(super) fenced: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) wrong_answers: AtomicU64,
    pub(super) fallbacks: AtomicU64,
}

impl Counters {
    pub(super) fn count<V>(&self, served: &Served<V>) {
        self.served.fetch_add(1, Relaxed);
        match served.how {
            How::Fresh => {}
            How::Stale => drop(self.stale.fetch_add(1, Relaxed)),
            How::Rescued => drop(self.rescued.fetch_add(1, Relaxed)),
        }
        if served.value.is_none() {
            self.negative.fetch_add(1, Relaxed);
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Tiered<K, V> {
    /// What it did so far.
    pub fn stats(&self) -> TieredStats {
        let Inner { tally, steps, .. } = &*self.inner;
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        TieredStats {
            near_hits: self.inner.near.cache.stats().hits.saturating_sub(self.inner.near.asked()),
            far_hits: of(&tally.far_hits),
            served: of(&tally.served),
            stale: of(&tally.stale),
            rescued: of(&tally.rescued),
            negative: of(&tally.negative),
            misses: of(&tally.misses),
            failures: of(&tally.failures),
            joined: of(&tally.joined),
            loads: of(&tally.loads),
            load_failures: of(&tally.load_failures),
            saves: of(&tally.saves),
            refreshes: of(&tally.refreshes),
            fenced: of(&tally.fenced),
            damaged: of(&tally.damaged),
            owed: self.inner.owed() as u64,
            loading: self.inner.board.len() as u64,
            steps: of(&steps.steps),
            instances_dropped: of(&steps.dropped),
            wrong_answers: of(&tally.wrong_answers),
            fallbacks: of(&tally.fallbacks),
        }
    }
}
