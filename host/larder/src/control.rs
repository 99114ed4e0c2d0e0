//! Changing the policy of a cache while it runs: swap, guard, rollback, shadow; and the one thread that looks after all
//! caches when no traffic does.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use crate::Cache;
use crate::Clock;
use crate::cache::Inner;
use crate::eviction::{Batch, Entries, Eviction, Fault, Limits, NEVER, Slot};
use crate::policy::{Module, Policy, PolicyError};
use crate::shard::{Removed, Terms};
use crate::stopwatch::Stopwatch;
use crate::timers::Timers;

/// How a swap went.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SwapReport {
    /// The policy that was replaced.
    pub from: String,
    /// The policy that replaced it.
    pub to: String,
    /// Entries that the new policy took over.
    pub adopted: u64,
    /// Entries that it did not want (a policy with admission, or a smaller idea of what fits); they were evicted.
    pub evicted: u64,
    /// Whether the new policy took over, in every shard, what the old one had learned beyond the order of the entries. It
    /// is offered where both have the same name.
    pub recalled: bool,
    /// From the call to the new policy's first decision in every shard.
    pub took: Duration,
    /// The longest time for which anything could have had to wait.
    pub pause: Duration,
    /// The hit ratio over the last reads before the swap; `None` if there were none.
    pub hit_ratio_before: Option<f64>,
    /// The hit ratio since then, until now or the next swap; `None` if there were no reads.
    pub hit_ratio_after: Option<f64>,
    /// Why it was rolled back, if it was.
    pub rolled_back: Option<String>,
}

/// Why a swap did not happen. The old policy goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwapError {
    /// The new policy could not be loaded or opened.
    #[error("the policy was not swapped: {0}")]
    Policy(#[from] PolicyError),
    /// The new policy failed while it took over.
    #[error("the policy was not swapped: `{module}` failed while it took over: {fault}")]
    Fault {
        /// The module's name.
        module: String,
        /// What it did.
        fault: Fault,
    },
}

/// When a swap is undone by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guard {
    /// By how much the hit ratio may fall: 0.02 is two points.
    pub margin: f64,
    /// Over how many reads it is measured, before and after.
    pub reads: u64,
}

impl Default for Guard {
    /// Two points over 100,000 reads.
    fn default() -> Self {
        Guard { margin: 0.02, reads: 100_000 }
    }
}

/// What a shadow would have won. From [`Cache::shadow_report`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ShadowReport {
    /// The candidate.
    pub policy: String,
    /// The share of the keys that it was run on.
    pub sample: f64,
    /// Reads of those keys.
    pub reads: u64,
    /// How many of them the cache answered.
    pub hits: u64,
    /// How many the candidate would have answered.
    pub shadow_hits: u64,
    /// What ended the candidate, if something did.
    pub fault: Option<String>,
}

impl ShadowReport {
    /// The hit ratio of the cache on the sampled keys.
    pub fn hit_ratio(&self) -> f64 {
        self.hits as f64 / self.reads.max(1) as f64
    }

    /// The hit ratio that the candidate would have had on them.
    pub fn shadow_hit_ratio(&self) -> f64 {
        self.shadow_hits as f64 / self.reads.max(1) as f64
    }
}

/// The part of a cache that this module keeps.
pub(crate) struct Control {
    module: Mutex<Module>,
    /// Held through a swap, and a rollback from when it is decided on: one at a time.
    swapping: Mutex<()>,
    swaps: AtomicU64,
    history: Mutex<VecDeque<SwapRecord>>,
    guarded: Mutex<Option<Guarded>>,
    samples: Mutex<VecDeque<(u64, u64)>>,
    shadowing: AtomicBool,
    shadow: Mutex<Option<Shadow>>,
}

struct SwapRecord {
    report: SwapReport,
    /// Hits and misses when it was done.
    since: (u64, u64),
    open: bool,
}

/// A swap that may be undone.
struct Guarded {
    previous: Module,
    before: Option<f64>,
    since: (u64, u64),
    traps: u64,
    guard: Guard,
}

/// Reports of swaps that are kept.
const HISTORY: usize = 32;
/// Samples of the hit counters, for the hit ratio before a swap.
const SAMPLES: usize = 256;

impl Control {
    pub(crate) fn new(module: Module) -> Self {
        Control {
            module: Mutex::new(module),
            swapping: Mutex::new(()),
            swaps: AtomicU64::new(0),
            history: Mutex::default(),
            guarded: Mutex::new(None),
            samples: Mutex::default(),
            shadowing: AtomicBool::new(false),
            shadow: Mutex::new(None),
        }
    }

    pub(crate) fn swaps(&self) -> u64 {
        self.swaps.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn is_shadowing(&self) -> bool {
        self.shadowing.load(Ordering::Relaxed)
    }

    /// A key was read.
    #[inline]
    pub(crate) fn saw(&self, hash: u64, found: Option<Seen>, clock: &Clock) {
        if self.is_shadowing() {
            self.tell_shadow(hash, clock, |shadow| shadow.read(hash, found));
        }
    }

    /// An entry came in, or its value was replaced: by a load after a miss, or by somebody who wrote.
    #[inline]
    pub(crate) fn kept(&self, hash: u64, terms: &Terms, is_load: bool, clock: &Clock) {
        if self.is_shadowing() {
            self.tell_shadow(hash, clock, |shadow| shadow.kept(hash, terms, is_load));
        }
    }

    /// A key was removed, whether there was an entry or not.
    #[inline]
    pub(crate) fn gone(&self, hash: u64, clock: &Clock) {
        if self.is_shadowing() {
            self.tell_shadow(hash, clock, |shadow| shadow.gone(hash));
        }
    }

    /// All keys were removed.
    pub(crate) fn all_gone(&self, clock: &Clock) {
        if let Some(shadow) = &mut *self.shadow.lock() {
            shadow.pass(clock.now_ms());
            shadow.depart(shadow.slots.values().copied().collect());
        }
    }

    #[cold]
    fn tell_shadow(&self, hash: u64, clock: &Clock, tell: impl FnOnce(&mut Shadow)) {
        if let Some(shadow) = &mut *self.shadow.lock()
            && shadow.sampled(hash)
        {
            shadow.pass(clock.now_ms());
            tell(shadow);
        }
    }
}

/// An entry as a read found it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) weight: u32,
    pub(crate) expires_at: u64,
}

/// A candidate that runs on a sample of the keys, with no values and a part of the capacity: what it is told is what a
/// cache of its own would have told it, in batches of one. Its entries expire when those of the cache would, and leave when
/// their keys are removed; what `invalidate_entries_if` would have removed of those that it alone has, nobody can tell.
struct Shadow {
    policy: Box<dyn Eviction>,
    name: String,
    sample: f64,
    /// Keys whose mixed hash is below this are in the sample.
    threshold: u64,
    /// Whether a read of an entry moves its end.
    renews: bool,
    slots: HashMap<u64, Slot, foldhash::fast::RandomState>,
    /// By slot.
    residents: Vec<ShadowEntry>,
    free: Vec<Slot>,
    timers: Timers,
    batch: Batch,
    victims: Vec<Slot>,
    reads: u64,
    hits: u64,
    shadow_hits: u64,
    fault: Option<Fault>,
}

/// What a shadow knows of an entry.
#[derive(Clone, Copy, Debug)]
struct ShadowEntry {
    hash: u64,
    weight: u32,
    expires_at: u64,
}

impl ShadowEntry {
    fn put(&self, slot: Slot, cost: u32, entries: &mut Entries) {
        entries.slots.push(slot);
        entries.fingerprints.push(self.hash);
        if self.weight != 1 {
            entries.weights.push(self.weight);
        }
        if cost != 0 {
            entries.costs.push(cost);
        }
        if self.expires_at != NEVER {
            entries.expiries.push(self.expires_at);
        }
    }
}

impl Shadow {
    /// Another mix of the hash than those that choose shard and bucket.
    fn sampled(&self, hash: u64) -> bool {
        hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32).wrapping_mul(0xd6e8_feb8_6659_fd93) <= self.threshold
    }

    /// Time passes: what expired leaves.
    fn pass(&mut self, now: u64) {
        self.batch.now = now.max(self.batch.now);
        let Shadow { timers, residents, batch, .. } = self;
        let mut expired = Vec::new();
        timers.advance(batch.now, |slot| {
            let expires_at = residents[slot as usize].expires_at;
            if expires_at > batch.now {
                return Some(expires_at);
            }
            expired.push(slot);
            None
        });
        self.depart(expired);
    }

    /// The slot of a key, if it is there and has not expired.
    fn resident(&mut self, hash: u64) -> Option<Slot> {
        let slot = *self.slots.get(&hash)?;
        // Timers fire within some milliseconds.
        if self.residents[slot as usize].expires_at <= self.batch.now {
            self.depart(vec![slot]);
            return None;
        }
        Some(slot)
    }

    fn read(&mut self, hash: u64, found: Option<Seen>) {
        if self.fault.is_some() {
            return;
        }
        self.reads += 1;
        self.hits += u64::from(found.is_some());
        match (self.resident(hash), found) {
            (Some(slot), found) => {
                self.shadow_hits += 1;
                if let Some(seen) = found.filter(|_| self.renews) {
                    self.ends(slot, seen.expires_at);
                }
                self.tell(|batch| batch.touched.push(slot));
            }
            // A cache of its own would load it now, as the real one will when it did not find it either.
            (None, Some(Seen { weight, expires_at })) => self.arrive(ShadowEntry { hash, weight, expires_at }, 0),
            (None, None) => {}
        }
    }

    fn kept(&mut self, hash: u64, terms: &Terms, is_load: bool) {
        let new = ShadowEntry { hash, weight: terms.weight, expires_at: terms.expires_at };
        let Some(slot) = self.resident(hash) else { return self.arrive(new, terms.cost) };
        let old = self.residents[slot as usize];
        if is_load {
            // The cache had lost it, and the candidate would not have.
            if self.renews {
                self.ends(slot, new.expires_at);
            }
            return;
        }
        self.residents[slot as usize] = new;
        self.ends(slot, new.expires_at);
        self.tell(|batch| {
            if (old.weight, old.expires_at) != (new.weight, new.expires_at) {
                new.put(slot, terms.cost, &mut batch.changed);
            }
            batch.touched.push(slot);
        });
    }

    fn gone(&mut self, hash: u64) {
        if let Some(&slot) = self.slots.get(&hash) {
            self.depart(vec![slot]);
        }
    }

    fn ends(&mut self, slot: Slot, at: u64) {
        self.residents[slot as usize].expires_at = at;
        self.timers.schedule(slot, at);
    }

    fn arrive(&mut self, entry: ShadowEntry, cost: u32) {
        if self.fault.is_some() {
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.residents.push(entry);
            (self.residents.len() - 1) as Slot
        });
        self.slots.insert(entry.hash, slot);
        self.residents[slot as usize] = entry;
        self.timers.schedule(slot, entry.expires_at);
        self.tell(|batch| entry.put(slot, cost, &mut batch.arrived));
    }

    /// Entries leave that the candidate did not choose.
    fn depart(&mut self, slots: Vec<Slot>) {
        if slots.is_empty() || self.fault.is_some() {
            return;
        }
        for &slot in &slots {
            self.slots.remove(&self.residents[slot as usize].hash);
            self.timers.cancel(slot);
        }
        self.tell(|batch| batch.departed.extend_from_slice(&slots));
        self.free.extend(slots);
    }

    fn tell(&mut self, what: impl FnOnce(&mut Batch)) {
        let now = self.batch.now;
        self.batch.clear();
        self.batch.now = now;
        what(&mut self.batch);
        self.victims.clear();
        if let Err(fault) = self.policy.advance(&self.batch, &mut self.victims) {
            self.fault = Some(fault);
            return;
        }
        for &victim in &self.victims {
            let resident = self.residents.get(victim as usize).and_then(|entry| self.slots.remove(&entry.hash));
            if resident != Some(victim) {
                self.fault = Some(Fault::NotResident { slot: victim });
                return;
            }
            self.timers.cancel(victim);
            self.free.push(victim);
        }
    }

    fn report(&self) -> ShadowReport {
        ShadowReport {
            policy: self.name.clone(),
            sample: self.sample,
            reads: self.reads,
            hits: self.hits,
            shadow_hits: self.shadow_hits,
            fault: self.fault.as_ref().map(Fault::to_string),
        }
    }
}

/// Changing the policy while the cache runs.
impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    /// The name of the policy that runs.
    pub fn policy_name(&self) -> String {
        self.inner.control.module.lock().name().to_string()
    }

    /// Replaces the policy beside live traffic: the new one is loaded and checked, adopts the residents in the old one's
    /// order (and, if it has the same name, what that had learned), is told what happened meanwhile, and takes over. No operation fails, no entry is lost; hits never wait.
    ///
    /// # Errors
    /// If the new policy cannot be loaded, or fails while it takes over. The old one goes on then.
    pub fn swap_policy(&self, policy: Policy) -> Result<SwapReport, SwapError> {
        self.inner.swap(policy.load()?, None)
    }

    /// As [`Self::swap_policy`], and back again by itself if the new policy traps, or the hit ratio falls by more than
    /// the guard's margin over its number of reads. [`Self::swap_history`] says whether and why.
    ///
    /// # Errors
    /// As [`Self::swap_policy`].
    pub fn swap_policy_guarded(&self, policy: Policy, guard: Guard) -> Result<SwapReport, SwapError> {
        self.inner.swap(policy.load()?, Some(guard))
    }

    /// The last swaps, oldest first, each with the hit ratio since then.
    pub fn swap_history(&self) -> Vec<SwapReport> {
        let now = self.inner.reads();
        let history = self.inner.control.history.lock();
        history
            .iter()
            .map(|record| {
                let mut report = record.report.clone();
                if record.open {
                    report.hit_ratio_after = ratio(record.since, now);
                }
                report
            })
            .collect()
    }

    /// Runs a candidate beside the policy on a sample of the keys (0 to 1, exclusive of 0), to learn what it would have
    /// won, until [`Self::end_shadow`] or the next call. A cache of 100,000 entries or more is well judged by a
    /// sixteenth; a small one needs more. Each read of a sampled key then costs a call of the candidate.
    ///
    /// # Errors
    /// If the candidate cannot be loaded or opened, or the sample is not in its range.
    pub fn shadow(&self, policy: Policy, sample: f64) -> Result<(), ShadowError> {
        let inner = &*self.inner;
        if !(sample > 0.0 && sample <= 1.0) {
            return Err(ShadowError::Sample(sample));
        }
        let module = policy.load()?;
        let capacity = ((inner.capacity as f64 * sample).round() as u64).max(1);
        let expected = inner.weigher.is_none().then(|| u32::try_from(capacity).unwrap_or(u32::MAX));
        let shadow = Shadow {
            policy: module.open(&Limits { capacity, expected, seed: 0 })?,
            name: module.name().to_string(),
            sample,
            threshold: (sample * u64::MAX as f64) as u64,
            renews: inner.renews_on_read,
            slots: HashMap::default(),
            residents: Vec::new(),
            free: Vec::new(),
            timers: Timers::new(),
            batch: Batch::default(),
            victims: Vec::new(),
            reads: 0,
            hits: 0,
            shadow_hits: 0,
            fault: None,
        };
        *inner.control.shadow.lock() = Some(shadow);
        inner.control.shadowing.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What the shadow would have won so far; `None` if there is none.
    pub fn shadow_report(&self) -> Option<ShadowReport> {
        self.inner.control.shadow.lock().as_ref().map(Shadow::report)
    }

    /// Ends the shadow, with its report.
    pub fn end_shadow(&self) -> Option<ShadowReport> {
        self.inner.control.shadowing.store(false, Ordering::Relaxed);
        self.inner.control.shadow.lock().take().map(|shadow| shadow.report())
    }
}

/// Why a shadow was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShadowError {
    /// The candidate could not be loaded or opened.
    #[error("no shadow was started: {0}")]
    Policy(#[from] PolicyError),
    /// The sample is out of range.
    #[error("a sample of {0}: it must be above 0 and at most 1")]
    Sample(f64),
}

fn ratio(since: (u64, u64), now: (u64, u64)) -> Option<f64> {
    let (hits, misses) = (now.0 - since.0.min(now.0), now.1 - since.1.min(now.1));
    (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64)
}

impl<K, V, S> Inner<K, V, S> {
    /// The hit ratio over the last `reads` reads, as far as samples go back.
    fn recent_hit_ratio(&self, reads: u64) -> Option<f64> {
        let now = self.reads();
        let samples = self.control.samples.lock();
        let enough = |&&(hits, misses): &&(u64, u64)| (now.0 + now.1).saturating_sub(hits + misses) >= reads;
        let since = samples.iter().rev().find(enough).or(samples.front()).copied().unwrap_or((0, 0));
        ratio(since, now).or_else(|| ratio((0, 0), now))
    }

    fn swap(&self, module: Module, guard: Option<Guard>) -> Result<SwapReport, SwapError> {
        let one_at_a_time = self.control.swapping.lock();
        let mut removed = Vec::new();
        let swapped = self.swap_alone(module, guard, &mut removed);
        drop(one_at_a_time);
        // Not before: a listener may swap the policy itself.
        self.notify(removed);
        swapped
    }

    /// With [`Control::swapping`] held.
    fn swap_alone(
        &self,
        module: Module,
        guard: Option<Guard>,
        removed: &mut Vec<Removed<K, V>>,
    ) -> Result<SwapReport, SwapError> {
        let began = Instant::now();
        let previous = self.control.module.lock().clone();
        let before = self.recent_hit_ratio(guard.unwrap_or_default().reads);
        // Open all before the first is seated, so that a module that cannot be opened changes nothing.
        let mut instances = Vec::with_capacity(self.shards.len());
        for shard in &self.shards {
            instances.push(module.open(&shard.shape.limits())?);
        }
        let mut report = SwapReport {
            from: previous.name().to_string(),
            to: module.name().to_string(),
            adopted: 0,
            evicted: 0,
            recalled: true,
            took: Duration::ZERO,
            pause: Duration::ZERO,
            hit_ratio_before: before,
            hit_ratio_after: None,
            rolled_back: None,
        };
        let mut traps = 0;
        for (at, (shard, instance)) in self.shards.iter().zip(instances).enumerate() {
            match shard.swap(instance, module.name().into(), self.clock.now_ms(), removed) {
                Ok(swapped) => {
                    report.adopted += swapped.adopted;
                    report.evicted += swapped.evicted;
                    report.recalled &= swapped.recalled;
                    report.pause = report.pause.max(swapped.pause);
                    traps += swapped.traps;
                }
                Err(fault) => {
                    // The shards before this one go back.
                    for shard in &self.shards[..at] {
                        if let Ok(back) = previous.open(&shard.shape.limits()) {
                            let _ = shard.swap(back, previous.name().into(), self.clock.now_ms(), removed);
                        }
                    }
                    return Err(SwapError::Fault { module: module.name().to_string(), fault });
                }
            }
        }
        report.took = began.elapsed();
        let since = self.reads();
        *self.control.module.lock() = module;
        self.control.swaps.fetch_add(1, Ordering::Relaxed);
        {
            let mut history = self.control.history.lock();
            if let Some(last) = history.back_mut() {
                last.report.hit_ratio_after = ratio(last.since, since);
                last.open = false;
            }
            if history.len() == HISTORY {
                history.pop_front();
            }
            history.push_back(SwapRecord { report: report.clone(), since, open: true });
        }
        *self.control.guarded.lock() = guard.map(|guard| Guarded { previous, before, since, traps, guard });
        tracing::info!(
            cache = self.name.as_deref(),
            from = report.from,
            to = report.to,
            adopted = report.adopted,
            pause_us = report.pause.as_micros() as u64,
            "swapped the policy"
        );
        Ok(report)
    }

    fn traps(&self) -> u64 {
        self.shards.iter().map(|shard| shard.seat().tally.traps).sum()
    }

    /// Undoes a guarded swap that went wrong.
    fn check_guard(&self) {
        // Whoever swaps right now puts another policy there, which is not to be undone for what this one did.
        let Some(one_at_a_time) = self.control.swapping.try_lock() else { return };
        let now = self.reads();
        let reason = {
            let mut guarded = self.control.guarded.lock();
            let Some(swap) = &*guarded else { return };
            let reads = (now.0 + now.1).saturating_sub(swap.since.0 + swap.since.1);
            let reason = if self.traps() > swap.traps {
                Some("it trapped".to_string())
            } else if reads < swap.guard.reads {
                return;
            } else {
                let (before, after) = (swap.before.unwrap_or(0.0), ratio(swap.since, now).unwrap_or(0.0));
                (after < before - swap.guard.margin)
                    .then(|| format!("the hit ratio fell from {:.2} % to {:.2} %", before * 100.0, after * 100.0))
            };
            // Either it passed, or it goes back: it is not watched any more.
            let Some(swap) = guarded.take() else { return };
            reason.map(|reason| (reason, swap.previous))
        };
        let Some((reason, previous)) = reason else { return };
        tracing::warn!(cache = self.name.as_deref(), reason, to = previous.name(), "rolling the policy back");
        if let Some(record) = self.control.history.lock().back_mut() {
            record.report.rolled_back = Some(reason);
        }
        let mut removed = Vec::new();
        if let Err(error) = self.swap_alone(previous, None, &mut removed) {
            tracing::error!(cache = self.name.as_deref(), %error, "the policy could not be rolled back");
        }
        drop(one_at_a_time);
        self.notify(removed);
    }

    fn publish(&self) {
        let stats = self.stats();
        let cache = self.name.as_deref().unwrap_or("unnamed").to_string();
        let counters = [
            ("larder_hits_total", stats.hits),
            ("larder_misses_total", stats.misses),
            ("larder_loads_total", stats.loads),
            ("larder_load_failures_total", stats.load_failures),
            ("larder_load_microseconds_total", stats.load_time.as_micros() as u64),
            ("larder_evictions_total", stats.evictions),
            ("larder_expirations_total", stats.expirations),
            ("larder_invalidations_total", stats.invalidations),
            ("larder_replacements_total", stats.replacements),
            ("larder_policy_calls_total", stats.policy_calls),
            ("larder_policy_microseconds_total", stats.policy_time.as_micros() as u64),
            ("larder_policy_faults_total", stats.faults),
            ("larder_policy_traps_total", stats.traps),
            ("larder_fallback_evictions_total", stats.fallback_evictions),
            ("larder_policy_swaps_total", stats.swaps),
        ];
        for (name, value) in counters {
            metrics::counter!(name, "cache" => cache.clone()).absolute(value);
        }
        let (entries, weight) = self.shards.iter().map(|s| s.size()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        metrics::gauge!("larder_entries", "cache" => cache.clone()).set(entries as f64);
        metrics::gauge!("larder_weight", "cache" => cache.clone()).set(weight as f64);
        metrics::gauge!("larder_policy_memory_bytes", "cache" => cache).set(stats.policy_memory as f64);
    }
}

/// What the one thread does for each cache.
pub(crate) trait Chores: Send + Sync {
    fn chores(&self);
}

impl<K, V, S> Chores for Inner<K, V, S>
where
    K: Send + Sync,
    V: Send + Sync,
    S: Send + Sync,
{
    fn chores(&self) {
        for shard in &self.shards {
            let mut removed = Vec::new();
            shard.tidy(self.clock.now_ms(), &mut removed);
            self.notify(removed);
        }
        let reads = self.reads();
        {
            let mut samples = self.control.samples.lock();
            if samples.back() != Some(&reads) {
                if samples.len() == SAMPLES {
                    samples.pop_front();
                }
                samples.push_back(reads);
            }
        }
        self.check_guard();
        self.publish();
    }
}

/// How often the thread looks: what expires without traffic is reclaimed within this time, a guarded swap that went
/// wrong is undone, metrics are published.
const EVERY: Duration = Duration::from_millis(250);

/// Has the cache looked after for as long as it lives. One thread serves all caches of the process.
pub(crate) fn watch(cache: Weak<dyn Chores>) {
    static WATCHED: OnceLock<Mutex<Vec<Weak<dyn Chores>>>> = OnceLock::new();
    let watched = WATCHED.get_or_init(|| {
        let spawned = std::thread::Builder::new().name("larder-chores".into()).spawn(|| {
            std::thread::sleep(EVERY);
            Stopwatch::calibrate();
            loop {
                std::thread::sleep(EVERY);
                let Some(watched) = WATCHED.get() else { continue };
                let caches: Vec<_> = {
                    let mut watched = watched.lock();
                    watched.retain(|cache| cache.strong_count() > 0);
                    watched.iter().filter_map(Weak::upgrade).collect()
                };
                for cache in caches {
                    // A listener of the user's may panic; the other caches are still to be looked after.
                    // The last handle may be this one, and then what is dropped may panic as well.
                    let chores = std::panic::AssertUnwindSafe(move || cache.chores());
                    if std::panic::catch_unwind(chores).is_err() {
                        tracing::error!("a panic in the chores of a cache, most likely in its eviction listener");
                    }
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for chores: entries expire and swaps roll back only under traffic");
        }
        Mutex::default()
    });
    watched.lock().push(cache);
}
