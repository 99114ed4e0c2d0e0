//! What a cache of tiers did.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use super::gate::GateStats;
use super::host::Inner;
use super::{How, Key, Served, Tiered};
use crate::control::Chores;

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
    /// Of the reads that would have loaded, those that the journal answered.
    pub journal_loads: u64,
    /// Saves that were begun.
    pub saves: u64,
    /// Writes that were logged, to be saved later.
    pub logged: u64,
    /// Writes that could not be logged.
    pub log_failures: u64,
    /// Flushes that ended with the write in the source.
    pub flushed: u64,
    /// Writes that became dead letters, because the source does not take them.
    pub buried: u64,
    /// Writes in the journal that are not saved yet.
    pub pending: u64,
    /// Refreshes that were begun.
    pub refreshes: u64,
    /// Copies that were not kept because something newer had happened.
    pub fenced: u64,
    /// Copies that a far tier did not take: they are too large for it, cannot be encoded, or nobody could tell whether
    /// they are newer than what was there. What it had of the key is gone.
    pub declined: u64,
    /// Far copies that could not be read.
    pub damaged: u64,
    /// Copies that its far tiers have met, for whatever keyspace, and that a later version of Larder wrote.
    pub newer: u64,
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
    /// What went through to the far tiers, the nearest first, and to the source, which is last.
    pub gates: Vec<GateStats>,
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
    pub(super) journal_loads: AtomicU64,
    pub(super) saves: AtomicU64,
    pub(super) logged: AtomicU64,
    pub(super) log_failures: AtomicU64,
    pub(super) flushed: AtomicU64,
    pub(super) buried: AtomicU64,
    pub(super) refreshes: AtomicU64,
    pub(super) fenced: AtomicU64,
    pub(super) declined: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) wrong_answers: AtomicU64,
    pub(super) fallbacks: AtomicU64,
}

impl Counters {
    pub(super) fn count<V>(&self, served: &Served<V>) {
        let mut tally = ServedTally::default();
        tally.count(served);
        self.add(&tally);
    }

    /// Counts reads that were served together.
    pub(super) fn add(&self, tally: &ServedTally) {
        let ServedTally { served, stale, rescued, negative } = *tally;
        let counters = [&self.served, &self.stale, &self.rescued, &self.negative];
        for (counter, more) in
            counters.into_iter().zip([served, stale, rescued, negative]).filter(|(_, more)| *more > 0)
        {
            counter.fetch_add(more, Relaxed);
        }
    }
}

/// Reads that were served, and how.
#[derive(Clone, Copy, Default)]
pub(super) struct ServedTally {
    served: u64,
    stale: u64,
    rescued: u64,
    negative: u64,
}

impl ServedTally {
    #[inline]
    pub(super) fn count<V>(&mut self, served: &Served<V>) {
        self.served += 1;
        match served.how {
            How::Fresh => {}
            How::Stale => self.stale += 1,
            How::Rescued => self.rescued += 1,
        }
        self.negative += u64::from(served.value.is_none());
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Tiered<K, V> {
    /// What it did so far.
    pub fn stats(&self) -> TieredStats {
        self.inner.stats()
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Inner<K, V> {
    fn stats(&self) -> TieredStats {
        let Inner { tally, steps, .. } = self;
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        TieredStats {
            near_hits: self.near.cache.stats().hits.saturating_sub(self.near.asked()),
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
            journal_loads: of(&tally.journal_loads),
            saves: of(&tally.saves),
            logged: of(&tally.logged),
            log_failures: of(&tally.log_failures),
            flushed: of(&tally.flushed),
            buried: of(&tally.buried),
            pending: self.journal.as_ref().map_or(0, |part| part.pending() as u64),
            refreshes: of(&tally.refreshes),
            fenced: of(&tally.fenced),
            declined: of(&tally.declined),
            damaged: of(&tally.damaged),
            newer: self.far.iter().map(|far| far.tier.newer()).sum(),
            owed: self.owed() as u64,
            loading: self.board.len() as u64,
            steps: of(&steps.steps),
            instances_dropped: of(&steps.dropped),
            wrong_answers: of(&tally.wrong_answers),
            fallbacks: of(&tally.fallbacks),
            gates: {
                let far = self.far.iter().map(|far| far.gate.stats());
                far.chain(self.source.is_some().then(|| self.source_gate.stats())).collect()
            },
        }
    }
}

/// Publishes what it did through the `metrics` facade, where a recorder is installed.
impl<K: Key, V: Clone + Send + Sync + 'static> Chores for Inner<K, V> {
    fn chores(&self) {
        let stats = self.stats();
        let keyspace = self.name.to_string();
        let counters = [
            ("larder_near_hits_total", stats.near_hits),
            ("larder_far_hits_total", stats.far_hits),
            ("larder_served_total", stats.served),
            ("larder_served_stale_total", stats.stale),
            ("larder_served_rescued_total", stats.rescued),
            ("larder_served_negative_total", stats.negative),
            ("larder_read_misses_total", stats.misses),
            ("larder_read_failures_total", stats.failures),
            ("larder_joined_total", stats.joined),
            ("larder_source_loads_total", stats.loads),
            ("larder_source_load_failures_total", stats.load_failures),
            ("larder_source_saves_total", stats.saves),
            ("larder_journal_logged_total", stats.logged),
            ("larder_journal_log_failures_total", stats.log_failures),
            ("larder_journal_flushed_total", stats.flushed),
            ("larder_journal_buried_total", stats.buried),
            ("larder_refreshes_total", stats.refreshes),
            ("larder_fenced_total", stats.fenced),
            ("larder_declined_total", stats.declined),
            ("larder_damaged_total", stats.damaged),
            ("larder_newer_total", stats.newer),
            ("larder_pattern_steps_total", stats.steps),
            ("larder_pattern_instances_dropped_total", stats.instances_dropped),
            ("larder_pattern_wrong_answers_total", stats.wrong_answers),
            ("larder_pattern_fallbacks_total", stats.fallbacks),
        ];
        for (name, value) in counters {
            metrics::counter!(name, "keyspace" => keyspace.clone()).absolute(value);
        }
        metrics::gauge!("larder_owed", "keyspace" => keyspace.clone()).set(stats.owed as f64);
        metrics::gauge!("larder_journal_pending", "keyspace" => keyspace.clone()).set(stats.pending as f64);
        metrics::gauge!("larder_loading", "keyspace" => keyspace.clone()).set(stats.loading as f64);
        for gate in stats.gates {
            let labels = [("keyspace", keyspace.clone()), ("before", gate.before)];
            metrics::counter!("larder_gate_calls_total", &labels).absolute(gate.calls);
            metrics::counter!("larder_gate_failures_total", &labels).absolute(gate.failures);
            metrics::counter!("larder_gate_broken_total", &labels).absolute(gate.broken);
            metrics::counter!("larder_gate_crowded_total", &labels).absolute(gate.crowded);
            metrics::counter!("larder_breaker_opened_total", &labels).absolute(gate.opened);
            metrics::gauge!("larder_gate_running", &labels).set(gate.running as f64);
            metrics::gauge!("larder_breaker_open", &labels).set(if gate.open { 1.0 } else { 0.0 });
        }
    }
}
