//! Setting a cache up.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::cache::{Inner, Listener, Weigher};
use crate::control::Control;
use crate::eviction::Limits;
use crate::flights::Board;
use crate::policy::{Policy, PolicyError};
use crate::shard::{Shape, Shard};
use crate::tiered::{Key, TieredBuilder};
use crate::{Cache, Clock, RemovalCause, control};

/// When an entry expires, decided for each.
///
/// Durations count from the call; `None` is never. The cache calls these under the lock of the entry's bucket (but for
/// creation), so they must be quick and must not call back into the cache.
pub trait Expiry<K, V>: Send + Sync {
    /// An entry is put in, or the value of its key replaced.
    fn expire_after_create(&self, key: &K, value: &V) -> Option<Duration>;

    /// An entry was read; `left` is what it has left. The default changes nothing.
    fn expire_after_read(&self, _key: &K, _value: &V, left: Option<Duration>) -> Option<Duration> {
        left
    }
}

/// Why a cache could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// `max_capacity` was not called, or with 0.
    #[error("a cache needs a bound: call `max_capacity` with 1 or more")]
    NoCapacity,
    /// More shards than entries, or none.
    #[error("{shards} shards for a capacity of {capacity}: `shards` must be from 1 to the capacity, and at most 1024")]
    Shards {
        /// What `shards` was called with.
        shards: usize,
        /// What `max_capacity` was called with.
        capacity: u64,
    },
    /// `time_to_live`, `time_to_idle` and `expire_after` say the same thing in two ways.
    #[error("`expire_after` decides for each entry: leave `time_to_live` and `time_to_idle` out")]
    TwoExpiries,
    /// `batch` was called with 0.
    #[error("`batch` must be 1 or more; 1 tells the policy each event by itself")]
    NoBatch,
    /// The policy could not be loaded or opened.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Sets a cache up. From [`Cache::builder`].
#[must_use]
pub struct Builder<K, V, S = crate::RandomState> {
    hasher: S,
    name: Option<String>,
    max_capacity: u64,
    expected_entries: Option<u32>,
    weigher: Option<Weigher<K, V>>,
    time_to_live: Option<Duration>,
    time_to_idle: Option<Duration>,
    expiry: Option<Arc<dyn Expiry<K, V>>>,
    listener: Option<Listener<K, V>>,
    policy: Policy,
    shards: Option<usize>,
    batch: Option<u32>,
    seed: u64,
    clock: Clock,
}

impl<K, V, S> std::fmt::Debug for Builder<K, V, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("max_capacity", &self.max_capacity).finish_non_exhaustive()
    }
}

impl<K, V, S> Builder<K, V, S> {
    pub(crate) fn new(hasher: S) -> Self {
        Builder {
            hasher,
            name: None,
            max_capacity: 0,
            expected_entries: None,
            weigher: None,
            time_to_live: None,
            time_to_idle: None,
            expiry: None,
            listener: None,
            policy: Policy::default(),
            shards: None,
            batch: None,
            seed: 0,
            clock: Clock::system(),
        }
    }

    /// The weight that the entries may have together: their number, if there is no [`weigher`](Self::weigher).
    ///
    /// It is a bound with a small slack: between two batches there may be a 32nd more entries, and up to 256 for each
    /// shard; never more than one for a cache of fewer than 1024 entries; and with a weigher never more than a sixteenth
    /// of the capacity and one entry.
    pub fn max_capacity(mut self, capacity: u64) -> Self {
        self.max_capacity = capacity;
        self
    }

    /// With a [`weigher`](Self::weigher): how many entries to expect, which decides shards and first sizes.
    pub fn expected_entries(mut self, entries: u32) -> Self {
        self.expected_entries = Some(entries);
        self
    }

    /// What an entry weighs; 0 counts as 1. Called once for each insert.
    pub fn weigher(mut self, weigher: impl Fn(&K, &V) -> u32 + Send + Sync + 'static) -> Self {
        self.weigher = Some(Arc::new(weigher));
        self
    }

    /// Entries expire this long after they were put in or replaced.
    pub fn time_to_live(mut self, after: Duration) -> Self {
        self.time_to_live = Some(after);
        self
    }

    /// Entries expire when they were not read or replaced for this long.
    pub fn time_to_idle(mut self, after: Duration) -> Self {
        self.time_to_idle = Some(after);
        self
    }

    /// Decides for each entry when it expires.
    pub fn expire_after(mut self, expiry: impl Expiry<K, V> + 'static) -> Self {
        self.expiry = Some(Arc::new(expiry));
        self
    }

    /// Called with each entry that leaves, and why, on the thread that noticed, under no lock.
    pub fn eviction_listener(mut self, listener: impl Fn(K, V, RemovalCause) + Send + Sync + 'static) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// Who decides what leaves; [`Policy::default`] if not called.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// A name for reports, metrics and log lines.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many shards (rounded up to a power of two), each with a policy instance and its part of the capacity. By
    /// default half as many as there are cores, more if one would have over half a million entries, fewer if one would have
    /// under 8,192, so that a small cache has one; with a weigher, one, unless
    /// [`expected_entries`](Self::expected_entries) says how many entries there will be.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// How many arrivals the policy is told of at once. By default a 64th of the entries, at most 128, and 1
    /// below 1024 entries. Asked for, 1 makes the policy exact, at the cost of a call for each arrival, and of a hundred
    /// nanoseconds or more for each read: it hears of all of them, in order. So it does by default below 128 entries.
    pub fn batch(mut self, batch: u32) -> Self {
        self.batch = Some(batch);
        self
    }

    /// The seed of the policy's random choices.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The clock by which entries expire; a test brings [`Clock::manual`].
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Another hasher. All 64 bits of its hashes must be good.
    pub fn hasher<H>(self, hasher: H) -> Builder<K, V, H> {
        Builder {
            hasher,
            name: self.name,
            max_capacity: self.max_capacity,
            expected_entries: self.expected_entries,
            weigher: self.weigher,
            time_to_live: self.time_to_live,
            time_to_idle: self.time_to_idle,
            expiry: self.expiry,
            listener: self.listener,
            policy: self.policy,
            shards: self.shards,
            batch: self.batch,
            seed: self.seed,
            clock: self.clock,
        }
    }

    fn shard_count(&self, expected: Option<u32>) -> Result<usize, BuildError> {
        if let Some(shards) = self.shards {
            let fits = (1..=1024).contains(&shards) && shards.next_power_of_two() as u64 <= self.max_capacity;
            let error = BuildError::Shards { shards, capacity: self.max_capacity };
            return if fits { Ok(shards.next_power_of_two()) } else { Err(error) };
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(default_shards(cores, expected.unwrap_or(1)))
    }
}

/// How many shards a cache of so many entries has on so many cores. ARCHITECTURE.md has the reasons.
fn default_shards(cores: usize, entries: u32) -> usize {
    const LEAST_ENTRIES: u32 = 8_192;
    const MOST_ENTRIES: u32 = 1 << 19;
    let for_threads = cores.div_ceil(2).next_power_of_two().min(64);
    let for_pauses = entries.div_ceil(MOST_ENTRIES).next_power_of_two().min(1024) as usize;
    let most = (entries / LEAST_ENTRIES).max(1).ilog2();
    for_threads.max(for_pauses).min(1 << most)
}

impl<K: Key, V: Clone + Send + Sync + 'static> Builder<K, V> {
    /// The cache grows: what is set up so far becomes tier 0 of a keyspace of this name, which may have far tiers, a
    /// source, a bus and a journal, and whose patterns a module decides. See [`tiered`](crate::tiered).
    ///
    /// ```
    /// use std::time::Duration;
    /// use larder::Cache;
    /// use larder::tiered::{FromFn, MemoryTier};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let names = Cache::<u64, String>::builder()
    ///     .max_capacity(1_000)
    ///     .time_to_live(Duration::from_secs(60))
    ///     .keyspace("names")
    ///     .source(FromFn::new(|id: u64| async move { Ok::<_, std::io::Error>(Some(format!("name {id}"))) }))
    ///     .build()?;
    /// assert_eq!(names.get(&7).await?.as_deref(), Some("name 7"));
    /// # Ok(()) }
    /// ```
    ///
    /// [`time_to_live`](Self::time_to_live) becomes the parameter `ttl-ms` of the rule. Freshness is the rule's:
    /// [`time_to_idle`](Self::time_to_idle) and [`expire_after`](Self::expire_after) are refused by
    /// [`TieredBuilder::build`]; the clock is tokio's.
    pub fn keyspace(self, name: impl Into<String>) -> TieredBuilder<K, V> {
        TieredBuilder::of(name.into(), self)
    }

    /// What a keyspace takes over, where tier 0 keeps `T` for a value: how a `T` is weighed, and which value, if any, a
    /// listener is told of.
    pub(crate) fn near<T>(
        self,
        weigher: Option<Weigher<K, T>>,
        value: impl Fn(T) -> Option<V> + Send + Sync + 'static,
        clock: Clock,
    ) -> Result<Builder<K, T>, &'static str> {
        if self.time_to_idle.is_some() {
            return Err("time_to_idle");
        }
        if self.expiry.is_some() {
            return Err("expire_after");
        }
        let listener = self.listener.map(|listener| -> Listener<K, T> {
            Arc::new(move |key, kept, cause| {
                if let Some(value) = value(kept) {
                    listener(key, value, cause);
                }
            })
        });
        Ok(Builder {
            hasher: self.hasher,
            name: self.name,
            max_capacity: self.max_capacity,
            expected_entries: self.expected_entries,
            weigher,
            time_to_live: None,
            time_to_idle: None,
            expiry: None,
            listener,
            policy: self.policy,
            shards: self.shards,
            batch: self.batch,
            seed: self.seed,
            clock,
        })
    }

    pub(crate) fn take_weigher(&mut self) -> Option<Weigher<K, V>> {
        self.weigher.take()
    }

    pub(crate) fn live_for(&self) -> Option<Duration> {
        self.time_to_live
    }
}

impl<K, V, S> Builder<K, V, S>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    /// Loads the policy and builds the cache.
    ///
    /// # Errors
    /// [`BuildError`], which says what to change.
    pub fn build(self) -> Result<Cache<K, V, S>, BuildError> {
        if self.max_capacity == 0 {
            return Err(BuildError::NoCapacity);
        }
        if self.batch == Some(0) {
            return Err(BuildError::NoBatch);
        }
        if self.expiry.is_some() && (self.time_to_live.is_some() || self.time_to_idle.is_some()) {
            return Err(BuildError::TwoExpiries);
        }
        let expected = match &self.weigher {
            None => Some(u32::try_from(self.max_capacity).unwrap_or(u32::MAX)),
            Some(_) => self.expected_entries,
        };
        let count = self.shard_count(expected)?;
        let module = self.policy.load()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut shards = Vec::with_capacity(count);
        for index in 0..count {
            let shape = Shape {
                // The first shards take what does not divide.
                capacity: self.max_capacity / count as u64
                    + u64::from((index as u64) < self.max_capacity % count as u64),
                expected: expected.map(|entries| entries.div_ceil(count as u32)),
                batch: self.batch,
                stripes: 2 * cores,
                weighted: self.weigher.is_some(),
                index: index as u32,
                seed: self.seed.wrapping_add(index as u64),
            };
            let instance = module.open(&shape.limits())?;
            shards.push(Shard::new(shape, instance, module.name().into()));
        }
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
        let cache = Cache {
            inner: Arc::new(Inner {
                shards: shards.into(),
                hasher: self.hasher,
                name: self.name.map(Into::into),
                capacity: self.max_capacity,
                weigher: self.weigher,
                time_to_live: self.time_to_live.map(millis),
                time_to_idle: self.time_to_idle.map(millis),
                renews_on_read: self.time_to_idle.is_some() || self.expiry.is_some(),
                expiry: self.expiry,
                listener: self.listener,
                clock: self.clock,
                board: Arc::new(Board::new()),
                explicit: AtomicU64::new(0),
                lazily_expired: AtomicU64::new(0),
                control: Control::new(module),
            }),
        };
        control::watch(Arc::downgrade(&cache.inner) as Weak<_>);
        Ok(cache)
    }
}

impl Shape {
    pub(crate) fn limits(&self) -> Limits {
        let expected = if self.weighted { self.expected } else { u32::try_from(self.capacity).ok() };
        Limits { capacity: self.capacity, expected, seed: self.seed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_shards_as_threads_and_swaps_need() {
        let counts = [
            (1, 0, 1),
            (1, 100_000, 1),
            (2, 100_000, 1),
            (2, 1 << 19, 1),
            (2, (1 << 19) + 1, 2),
            (2, 10_000_000, 32),
            (3, 100_000, 2),
            (16, 10_000, 1),
            (16, 20_000, 2),
            (16, 100_000, 8),
            (500, 10_000_000, 64),
            (500, u32::MAX, 1024),
        ];
        for (cores, entries, shards) in counts {
            assert_eq!(default_shards(cores, entries), shards, "{entries} entries on {cores} cores");
        }
    }
}
