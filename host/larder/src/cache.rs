//! The cache that users hold.

use std::any::Any;
use std::borrow::Borrow;
use std::future::Future;
use std::hash::{BuildHasher, Hash};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::builder::Builder;
use crate::control::Seen;
use crate::eviction::{NEVER, Slot};
use crate::flights::{Board, Boarding, By, Ended, Load, Ticket};
use crate::shard::{Due, Removed, Shard, Terms};
use crate::stopwatch::Stopwatch;
use crate::table;
use crate::{Clock, Expiry, RemovalCause};

/// The hasher of a cache: foldhash, seeded for each process, in the variant whose every bit is good.
pub type RandomState = foldhash::quality::RandomState;

/// A bounded cache whose eviction policy is a module.
///
/// A clone is another handle to the same cache. Every method may be called from any thread, and in async code: none
/// waits for anything but short locks, except those that load. User code runs under a lock of the bucket where it says
/// so; it must not call back into the cache there.
///
/// ```
/// use larder::Cache;
///
/// let cache = Cache::builder().max_capacity(10_000).build()?;
/// cache.insert("apple", 3);
/// assert_eq!(cache.get("apple"), Some(3));
/// assert_eq!(cache.get_with("pear", || 5), 5); // loaded once, however many ask
/// cache.invalidate("apple");
/// assert_eq!(cache.get("apple"), None);
/// # Ok::<(), larder::BuildError>(())
/// ```
pub struct Cache<K, V, S = RandomState> {
    pub(crate) inner: Arc<Inner<K, V, S>>,
}

/// In place of the end of the time to live: the entry has its own deadline, and reads do not change it.
const FIXED: u64 = 0;

/// Called with each entry that leaves.
pub(crate) type Listener<K, V> = Arc<dyn Fn(K, V, RemovalCause) + Send + Sync>;
/// What an entry weighs.
pub(crate) type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// Where an entry lies: for as long as it does, no other lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) shard: usize,
    pub(crate) slot: Slot,
}

pub(crate) struct Inner<K, V, S> {
    pub(crate) shards: Box<[Shard<K, V>]>,
    pub(crate) hasher: S,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) capacity: u64,
    pub(crate) weigher: Option<Weigher<K, V>>,
    pub(crate) time_to_live: Option<u64>,
    pub(crate) time_to_idle: Option<u64>,
    pub(crate) expiry: Option<Arc<dyn Expiry<K, V>>>,
    /// Whether a read may set a new expiry: there is a time to idle or an `expiry`.
    pub(crate) renews_on_read: bool,
    pub(crate) listener: Option<Listener<K, V>>,
    pub(crate) clock: Clock,
    pub(crate) board: Arc<Board<K, V>>,
    pub(crate) explicit: AtomicU64,
    pub(crate) lazily_expired: AtomicU64,
    pub(crate) control: crate::control::Control,
}

impl<K, V, S> Clone for Cache<K, V, S> {
    fn clone(&self) -> Self {
        Cache { inner: self.inner.clone() }
    }
}

impl<K, V, S> std::fmt::Debug for Cache<K, V, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("name", &self.inner.name)
            .field("max_capacity", &self.inner.capacity)
            .field("entry_count", &self.entry_count())
            .finish_non_exhaustive()
    }
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Sets a cache up.
    pub fn builder() -> Builder<K, V> {
        Builder::new(RandomState::default())
    }
}

impl<K, V, S> Cache<K, V, S> {
    /// The name that it was built with.
    pub fn name(&self) -> Option<&str> {
        self.inner.name.as_deref()
    }

    /// The weight that its entries may have together (their number, if there is no weigher).
    pub fn max_capacity(&self) -> u64 {
        self.inner.capacity
    }

    /// How many entries there are. What expired and was not reclaimed yet counts.
    pub fn entry_count(&self) -> u64 {
        self.inner.shards.iter().map(|shard| shard.size().0).sum()
    }

    /// What the entries weigh together; their number, if there is no weigher. At most the capacity plus the documented
    /// slack (see [`Builder::max_capacity`]).
    pub fn weighted_size(&self) -> u64 {
        self.inner.shards.iter().map(|shard| shard.size().1).sum()
    }
}

impl<K, V, S> Inner<K, V, S> {
    pub(crate) fn notify(&self, removed: Vec<Removed<K, V>>) {
        for (key, value, cause) in removed {
            // The others are counted where they happen.
            if cause == RemovalCause::Explicit {
                self.explicit.fetch_add(1, Ordering::Relaxed);
            }
            self.tell(key, value, cause);
        }
    }

    /// Calls the listener. Its panic is its own: it is logged, and neither the caller nor the entries after this one suffer.
    fn tell(&self, key: K, value: V, cause: RemovalCause) {
        let Some(listener) = &self.listener else { return };
        if std::panic::catch_unwind(AssertUnwindSafe(|| listener(key, value, cause))).is_err() {
            tracing::error!(cache = self.name.as_deref(), "the eviction listener panicked");
        }
    }

    /// An insert replaced a value, or found it expired.
    #[inline]
    pub(crate) fn notify_replaced(&self, shard: usize, replaced: Option<Removed<K, V>>) {
        let Some((key, value, cause)) = replaced else { return };
        if cause == RemovalCause::Expired {
            self.lazily_expired.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shards[shard].touches.replaced();
        }
        self.tell(key, value, cause);
    }

    /// Runs maintenance on a shard if it is due, and lets go of what left.
    #[inline]
    pub(crate) fn maintain(&self, shard: usize, due: Due) {
        if due != Due::No {
            self.maintain_now(shard, due);
        }
    }

    #[cold]
    fn maintain_now(&self, shard: usize, due: Due) {
        let mut removed = Vec::new();
        self.shards[shard].maintain(due, self.clock.now_ms(), &mut removed);
        self.notify(removed);
    }

    fn expire_at(now: u64, after: Option<Duration>) -> u64 {
        after.map_or(NEVER, |after| now.saturating_add(u64::try_from(after.as_millis()).unwrap_or(NEVER)))
    }
}

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    #[inline]
    fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> (table::Hash, usize) {
        let hash = table::Hash(self.inner.hasher.hash_one(key));
        (hash, self.shard_of(hash))
    }

    fn shard_of(&self, hash: table::Hash) -> usize {
        // The bits that the table uses least.
        (hash.0 >> 48) as usize & (self.inner.shards.len() - 1)
    }

    /// The value of a key. This counts as a use of the entry; a value is cloned under the lock of its bucket.
    ///
    /// A hit costs a hash, two cache lines and a clone. It never enters the policy.
    #[inline]
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (hash, at) = self.hash(key);
        self.get_hashed(hash, at, key)
    }

    #[inline]
    fn get_hashed<Q>(&self, hash: table::Hash, at: usize, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.read_hashed(hash, at, key, table::is_brief::<V>(), |value, _, _| value.clone())
    }

    /// As [`Self::get`], for what `read` makes of the value under the lock of its bucket, which others may share unless that
    /// `is_brief`. `read` is told where the entry lies, and the time if it expires, 0 if it does not.
    #[inline(always)]
    pub(crate) fn read<Q, R>(&self, key: &Q, is_brief: bool, read: impl FnOnce(&V, Place, u64) -> R) -> Option<R>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (hash, at) = self.hash(key);
        self.read_hashed(hash, at, key, is_brief, |value, slot, now| read(value, Place { shard: at, slot }, now))
    }

    #[inline(always)]
    fn read_hashed<Q, R>(
        &self,
        hash: table::Hash,
        at: usize,
        key: &Q,
        is_brief: bool,
        read: impl FnOnce(&V, Slot, u64) -> R,
    ) -> Option<R>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.inner.control.is_shadowing() {
            return self.read_shadowed(hash, at, key, is_brief, read);
        }
        self.read_slot(hash, at, key, is_brief, read).map(|(read, _)| read)
    }

    /// As [`Self::read_hashed`], and tells the shadow.
    #[cold]
    fn read_shadowed<Q, R>(
        &self,
        hash: table::Hash,
        at: usize,
        key: &Q,
        is_brief: bool,
        read: impl FnOnce(&V, Slot, u64) -> R,
    ) -> Option<R>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (read, slot) = self.read_slot(hash, at, key, is_brief, read).unzip();
        // The slot may be another entry's by now, whose terms are as good for an estimate.
        let seen = slot.map(|slot| {
            let table = &self.inner.shards[at].table;
            let (weight, expires_at) = (table.weight(slot), table.expires_at(slot));
            Seen { weight, expires_at }
        });
        self.inner.control.saw(hash.0, seen, &self.inner.clock);
        read
    }

    /// As [`Self::read_hashed`], with the slot of a hit.
    ///
    /// This is the way of every hit. Every instruction that is not here lets the processor begin the next read earlier,
    /// while it still waits for the memory of this one; so what is not always needed stands in functions of its own.
    #[inline(always)]
    fn read_slot<Q, R>(
        &self,
        hash: table::Hash,
        at: usize,
        key: &Q,
        is_brief: bool,
        read: impl FnOnce(&V, Slot, u64) -> R,
    ) -> Option<(R, Slot)>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let inner = &*self.inner;
        let shard = &inner.shards[at];
        // Beside what the table hands on, not in it: what is wrapped again and again is copied through memory each time.
        let mut answer = None;
        let found = shard.table.read(
            hash,
            is_brief,
            |k| k.borrow() == key,
            |slot, key, value| {
                let now = if shard.table.expires() || inner.renews_on_read {
                    self.read_in_time(at, slot, key, value)?
                } else {
                    0
                };
                // There was none; to assign would look whether there is one to drop.
                std::mem::forget(answer.replace(read(value, slot, now)));
                Some(slot)
            },
        );
        match found {
            Some(Some(slot)) => {
                shard.touches.hit();
                inner.maintain(at, shard.touched(slot));
                answer.map(|answer| (answer, slot))
            }
            Some(None) => {
                self.remove_expired(hash, at, key);
                shard.touches.miss();
                None
            }
            None => {
                shard.touches.miss();
                None
            }
        }
    }

    /// The time of a read where entries expire, or reads renew them, and 0 of one that does neither; `None` if it has expired.
    #[inline(never)]
    fn read_in_time(&self, at: usize, slot: Slot, key: &K, value: &V) -> Option<u64> {
        let inner = &*self.inner;
        let expires_at = inner.shards[at].table.expires_at(slot);
        if expires_at == NEVER && !inner.renews_on_read {
            return Some(0);
        }
        let now = inner.clock.now_ms();
        if expires_at <= now {
            return None;
        }
        if inner.renews_on_read {
            self.renew_on_read(at, slot, key, value, expires_at, now);
        }
        Some(now)
    }

    /// Sets a new expiry where a read does.
    #[allow(clippy::too_many_arguments)] // One call, from under the lock.
    fn renew_on_read(&self, at: usize, slot: Slot, key: &K, value: &V, expires_at: u64, now: u64) {
        let inner = &*self.inner;
        let live_until = inner.shards[at].live_until(slot);
        if live_until == FIXED {
            return;
        }
        let mut renewed = expires_at;
        if let Some(expiry) = &inner.expiry {
            let left = (expires_at != NEVER).then(|| Duration::from_millis(expires_at - now));
            renewed = Inner::<K, V, S>::expire_at(now, expiry.expire_after_read(key, value, left));
        } else if let Some(idle) = inner.time_to_idle {
            // With a time to live as well, whichever comes first.
            renewed = now.saturating_add(idle).min(live_until);
        }
        if renewed != expires_at {
            inner.shards[at].table.set_expires_at(slot, renewed);
        }
        if renewed < expires_at {
            inner.shards[at].hastened(slot);
        }
    }

    #[cold]
    fn remove_expired<Q>(&self, hash: table::Hash, at: usize, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let inner = &*self.inner;
        let now = inner.clock.now_ms();
        let taken = inner.shards[at].remove_if(hash, |k| k.borrow() == key, || true, |_, _, expiry| expiry <= now);
        let (removed, due) = taken.unwrap_or((None, Due::No));
        if let Some((key, value)) = removed {
            inner.lazily_expired.fetch_add(1, Ordering::Relaxed);
            inner.notify(vec![(key, value, RemovalCause::Expired)]);
        }
        inner.maintain(at, due);
    }
}

/// Writing.
impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    /// Puts an entry in, or replaces the value of its key. It is visible at once. A load of the key that is in flight
    /// will not overwrite it.
    ///
    /// An entry that weighs more than a shard's capacity is let in and evicted at once, with the listener told.
    pub fn insert(&self, key: K, value: V) {
        let expires_at = self.expiry_of_new(&key, &value);
        let terms = self.terms(&key, &value, 0, expires_at);
        self.insert_terms(key, value, terms, |_| ());
    }

    /// As [`Self::insert`], for an entry that expires after `time_to_live`, whatever the cache's own rule.
    pub fn insert_for(&self, key: K, value: V, time_to_live: Duration) {
        let inner = &*self.inner;
        let expires_at = Inner::<K, V, S>::expire_at(inner.clock.now_ms(), Some(time_to_live));
        let mut terms = self.terms(&key, &value, 0, expires_at);
        if inner.renews_on_read {
            terms.live_until = FIXED;
        }
        self.insert_terms(key, value, terms, |_| ());
    }

    /// As [`Self::insert`], for an entry that expires then, and whose load took so many microseconds.
    pub(crate) fn insert_until(&self, key: K, value: V, cost_us: u64, expires_at: u64) {
        self.insert_placed(key, value, cost_us, expires_at, |_| ());
    }

    /// As [`Self::insert_until`], and `placed` is told where the entry lies, under the lock under which it can be read.
    pub(crate) fn insert_placed(&self, key: K, value: V, cost_us: u64, expires_at: u64, placed: impl FnMut(Place)) {
        let cost = u32::try_from(cost_us).unwrap_or(u32::MAX);
        let terms = Terms { live_until: FIXED, ..self.terms(&key, &value, cost, expires_at) };
        self.insert_terms(key, value, terms, placed);
    }

    fn insert_terms(&self, key: K, value: V, terms: Terms, mut placed: impl FnMut(Place)) {
        let (hash, at) = self.hash(&key);
        let board = &self.inner.board;
        let mut placed = |slot| placed(Place { shard: at, slot });
        let idle = |_| board.is_idle(hash.0);
        let kept = self.keep(hash, key, value, terms, false, idle, &mut placed).or_else(|(key, value)| {
            let _fenced = board.fence(hash.0, &key);
            self.keep(hash, key, value, terms, false, |_| true, &mut placed)
        });
        if let Ok((replaced, due)) = kept {
            self.inner.notify_replaced(at, replaced);
            self.inner.maintain(at, due);
        }
    }

    /// When a new entry expires by the cache's rules.
    fn expiry_of_new(&self, key: &K, value: &V) -> u64 {
        let inner = &*self.inner;
        if let Some(expiry) = &inner.expiry {
            let now = inner.clock.now_ms();
            return Inner::<K, V, S>::expire_at(now, expiry.expire_after_create(key, value));
        }
        let Some(span) = inner.time_to_live.into_iter().chain(inner.time_to_idle).min() else { return NEVER };
        inner.clock.now_ms().saturating_add(span)
    }

    /// What an entry weighs, and the rest of its terms.
    fn terms(&self, key: &K, value: &V, cost: u32, expires_at: u64) -> Terms {
        let inner = &*self.inner;
        // A weight of 0 would let entries in without end.
        let weight = inner.weigher.as_ref().map_or(1, |weigher| weigher(key, value)).max(1);
        let live_until = match (inner.time_to_live, inner.time_to_idle) {
            (Some(live), Some(_)) => inner.clock.now_ms().saturating_add(live),
            _ => NEVER,
        };
        Terms { weight, cost, expires_at, live_until }
    }

    /// Puts an entry into its shard, if `may` says yes under the lock of its column. It is told when the entry that is
    /// there expires, if there is one. `placed` is told the slot, under that lock.
    #[allow(clippy::type_complexity, clippy::too_many_arguments)] // As that of the shard.
    #[inline(always)]
    fn keep(
        &self,
        hash: table::Hash,
        key: K,
        value: V,
        terms: Terms,
        is_load: bool,
        may: impl FnOnce(Option<u64>) -> bool,
        placed: impl FnOnce(Slot),
    ) -> Result<(Option<Removed<K, V>>, Due), (K, V)> {
        let inner = &*self.inner;
        let shard = &inner.shards[self.shard_of(hash)];
        let kept = shard.insert(hash, key, value, terms, may, placed, || inner.clock.now_ms())?;
        inner.control.kept(hash.0, &terms, is_load, &inner.clock);
        Ok(kept)
    }

    /// Takes an entry out and answers with its value, if it had not expired. A load of the key that is in flight will
    /// not be kept.
    pub fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (hash, at) = self.hash(key);
        let inner = &*self.inner;
        let mut expired = false;
        let mut take_if = |may: &dyn Fn() -> bool| {
            inner.shards[at].remove_if(
                hash,
                |k| k.borrow() == key,
                may,
                |_, _, expires_at| {
                    expired = expires_at != NEVER && expires_at <= inner.clock.now_ms();
                    true
                },
            )
        };
        let (removed, due) = take_if(&|| inner.board.is_idle(hash.0)).unwrap_or_else(|| {
            let _fenced = inner.board.fence(hash.0, key);
            take_if(&|| true).unwrap_or((None, Due::No))
        });
        inner.maintain(at, due);
        inner.control.gone(hash.0, &inner.clock);
        let (key, value) = removed?;
        if expired {
            inner.lazily_expired.fetch_add(1, Ordering::Relaxed);
            inner.notify(vec![(key, value, RemovalCause::Expired)]);
            return None;
        }
        if inner.listener.is_some() {
            inner.notify(vec![(key, value.clone(), RemovalCause::Explicit)]);
        } else {
            inner.explicit.fetch_add(1, Ordering::Relaxed);
        }
        Some(value)
    }

    /// Takes an entry out. When this returns, no read finds the old value, and no load that began before will be kept.
    pub fn invalidate<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        drop(self.remove(key));
    }

    /// Takes all entries out that were there when it was called. Cost: linear in their number.
    pub fn invalidate_all(&self) {
        self.inner.board.fence_all();
        self.remove_all(|_, _| true);
        self.inner.control.all_gone(&self.inner.clock);
    }

    /// Takes out all entries for which `condition` holds, which runs under the lock of their bucket. Cost: linear in the
    /// number of all entries.
    pub fn invalidate_entries_if(&self, condition: impl Fn(&K, &V) -> bool) {
        // What is in flight has no value to ask `condition` about: fence it all, which costs no more than a load.
        self.inner.board.fence_all();
        self.remove_all(condition);
    }

    fn remove_all(&self, condition: impl Fn(&K, &V) -> bool) {
        let inner = &*self.inner;
        for (at, shard) in inner.shards.iter().enumerate() {
            let mut removed = Vec::new();
            shard.remove_all(&condition, inner.clock.now_ms(), &mut removed);
            let expired = removed.iter().filter(|(_, _, cause)| *cause == RemovalCause::Expired).count();
            inner.lazily_expired.fetch_add(expired as u64, Ordering::Relaxed);
            if inner.control.is_shadowing() {
                removed.iter().for_each(|(key, ..)| inner.control.gone(self.hash(key).0.0, &inner.clock));
            }
            inner.notify(removed);
            inner.maintain(at, Due::Soon);
        }
    }

    /// Whether a key is there and has not expired. This is no use of the entry, and counts as neither hit nor miss.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.peek_with(key, |_| ()).is_some()
    }

    /// The value of a key, without counting as a use of the entry, a hit or a miss.
    pub fn peek<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.peek_with(key, V::clone)
    }

    pub(crate) fn peek_with<Q, R>(&self, key: &Q, f: impl FnOnce(&V) -> R) -> Option<R>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.peek_placed(key, |value, _| f(value))
    }

    /// How many shards there are.
    pub(crate) fn shards(&self) -> usize {
        self.inner.shards.len()
    }

    /// As [`Self::peek_with`], with where the entry lies.
    pub(crate) fn peek_placed<Q, R>(&self, key: &Q, f: impl FnOnce(&V, Place) -> R) -> Option<R>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (hash, at) = self.hash(key);
        let found = self.inner.shards[at].table.read(
            hash,
            false,
            |k| k.borrow() == key,
            |slot, _, value| {
                let expires_at = self.inner.shards[at].table.expires_at(slot);
                let fresh = expires_at == NEVER || expires_at > self.inner.clock.now_ms();
                fresh.then(|| f(value, Place { shard: at, slot }))
            },
        );
        found.flatten()
    }

    /// Does what is waiting for the policy or for a timer now. The cache does so by itself; a test that wants to count
    /// calls this first.
    pub fn run_pending_tasks(&self) {
        self.inner.settle();
    }

    /// All entries that have not expired, in no particular order, each cloned. Entries that come or go meanwhile may or
    /// may not be seen; one that stays is seen once.
    pub fn iter(&self) -> Iter<'_, K, V, S>
    where
        K: Clone,
    {
        Iter { cache: self, shard: 0, slot: 0, slots: self.inner.shards[0].slots() }
    }
}

impl<K, V, S> Inner<K, V, S> {
    pub(crate) fn settle(&self) {
        for shard in &self.shards {
            let mut removed = Vec::new();
            shard.settle(self.clock.now_ms(), &mut removed);
            self.notify(removed);
        }
    }
}

/// See [`Cache::iter`].
#[derive(Debug)]
pub struct Iter<'c, K, V, S> {
    cache: &'c Cache<K, V, S>,
    shard: usize,
    slot: Slot,
    slots: Slot,
}

impl<K: Clone, V: Clone, S> Iterator for Iter<'_, K, V, S> {
    type Item = (K, V);

    fn next(&mut self) -> Option<(K, V)> {
        let inner = &self.cache.inner;
        loop {
            let shard = inner.shards.get(self.shard)?;
            if self.slot == self.slots {
                self.shard += 1;
                self.slot = 0;
                self.slots = inner.shards.get(self.shard)?.slots();
                continue;
            }
            let slot = self.slot;
            self.slot += 1;
            let entry = shard.look(slot, |key, value, expires_at| {
                let fresh = expires_at == NEVER || expires_at > inner.clock.now_ms();
                fresh.then(|| (key.clone(), value.clone()))
            });
            if let Some(Some(entry)) = entry {
                return Some(entry);
            }
        }
    }
}

/// Loading: one load for each key, whoever asks.
impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    /// The value of a key; if it is not there, `load` brings it. Of concurrent callers one loads, the others wait for its
    /// value. If it panics, another caller loads.
    ///
    /// A load of [`get_with_async`](Self::get_with_async) that is under way is waited for, too, and left to the tasks that
    /// asked for it: if all of them are dropped, or none has polled it for some time though it was ready to go on, `load` runs.
    /// As it blocks, do not call this where those tasks need this very thread to go on.
    ///
    /// # Panics
    /// A load asked for its own key and would have waited for itself. Only where it asks on its own thread is that told; a
    /// load must not do so by way of another either.
    pub fn get_with(&self, key: K, load: impl FnOnce() -> V) -> V {
        match self.try_get_with(key, || Ok::<V, std::convert::Infallible>(load())) {
            Ok(value) => value,
            Err(never) => match *never {},
        }
    }

    /// As [`Self::get_with`], with a load that may fail.
    ///
    /// # Errors
    /// The error of the load, shared by all who waited for it. Nothing is kept; the next caller loads anew.
    ///
    /// # Panics
    /// As [`Self::get_with`].
    pub fn try_get_with<E>(&self, key: K, load: impl FnOnce() -> Result<V, E>) -> Result<V, Arc<E>>
    where
        E: Send + Sync + 'static,
    {
        let (hash, at) = self.hash(&key);
        let board = &self.inner.board;
        let mut landed = board.landed(hash.0);
        if let Some(value) = self.get_hashed(hash, at, &key) {
            return Ok(value);
        }
        loop {
            match board.board(By::Thread, hash.0, &key, Some(landed), || self.peek(&key), || None) {
                Ok(value) => return Ok(value),
                Err(Boarding::Lead(lead)) => {
                    let began = lead.is_timed().then(Stopwatch::start);
                    let loaded = load().map_err(Arc::new);
                    let nanos = began.map_or(0, Stopwatch::elapsed_nanos);
                    let outcome = || loaded.clone().map_err(|error| error as Arc<dyn Any + Send + Sync>);
                    let mut kept = Kept::default();
                    lead.land(Some((nanos, loaded.is_ok())), outcome, || {
                        if let Ok(value) = &loaded {
                            kept = self.keep_loaded(hash, &key, value, cost(nanos));
                        }
                    });
                    kept.finish(&self.inner, at);
                    return loaded;
                }
                Err(Boarding::Join(ticket)) => {
                    if let Some(result) = shared(ticket.wait()) {
                        return result;
                    }
                    landed = u64::MAX;
                }
            }
        }
    }

    /// As [`Self::get_with`], for async code. The load belongs to all tasks that wait for it: whichever of them is polled polls
    /// it, so a caller that is dropped, or never polled again, holds up no other; when all are dropped, so is the load. The
    /// cache needs no runtime; what the load needs of one (timers, sockets) all who ask for its key in this way must have.
    ///
    /// # Panics
    /// The load asked for its own key, and would have waited for itself. Only where it does so itself is that told, and not
    /// where it waits for a task of its own that does.
    pub async fn get_with_async<F>(&self, key: K, load: F) -> V
    where
        F: Future<Output = V> + Send + 'static,
    {
        let load = async move { Ok::<V, std::convert::Infallible>(load.await) };
        match self.try_get_with_async(key, load).await {
            Ok(value) => value,
            Err(never) => match *never {},
        }
    }

    /// As [`Self::get_with_async`], with a load that may fail.
    ///
    /// # Errors
    /// As [`Self::try_get_with`].
    ///
    /// # Panics
    /// As [`Self::get_with_async`].
    pub async fn try_get_with_async<F, E>(&self, key: K, load: F) -> Result<V, Arc<E>>
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
        E: Send + Sync + 'static,
    {
        let (hash, at) = self.hash(&key);
        let mut landed = self.inner.board.landed(hash.0);
        if let Some(value) = self.get_hashed(hash, at, &key) {
            return Ok(value);
        }
        let mut load = Some(load);
        loop {
            let make = || {
                let load = load.take()?;
                let erased = async move {
                    let began = Stopwatch::start();
                    let loaded = load.await.map_err(|error| Arc::new(error) as Arc<dyn Any + Send + Sync>);
                    (loaded, began.elapsed_nanos())
                };
                Some(Box::pin(erased) as Load<V>)
            };
            let boarding = self.inner.board.board(By::Task, hash.0, &key, Some(landed), || self.peek(&key), make);
            let ticket = match boarding {
                Ok(value) => return Ok(value),
                Err(Boarding::Join(ticket)) => ticket,
                // Its load was dropped with a flight that was abandoned: it was begun, and nobody can begin it again.
                Err(Boarding::Lead(_)) => unreachable!("the load is made once, and then its flight is this ticket's"),
            };
            let ended = Passenger { cache: self, ticket, hash, at, key: key.clone() }.await;
            if let Some(result) = shared(ended) {
                return result;
            }
            landed = u64::MAX;
        }
    }

    /// The entry of a key, to look at and fill in one go.
    ///
    /// ```
    /// # let cache = larder::Cache::builder().max_capacity(10).build()?;
    /// let entry = cache.entry("visits").or_insert_with(|| 1);
    /// assert!(entry.is_fresh());
    /// assert!(!cache.entry("visits").or_insert(7).is_fresh());
    /// let entry = cache.entry("visits").and_upsert_with(|old| old.map_or(1, |n| n + 1));
    /// assert_eq!(entry.into_value(), 2);
    /// # Ok::<(), larder::BuildError>(())
    /// ```
    pub fn entry(&self, key: K) -> EntrySelector<'_, K, V, S> {
        EntrySelector { cache: self, key }
    }

    /// Keeps what a load brought, unless somebody put an entry in meanwhile. Runs under the board's lock, so what it
    /// pushes out is let go of later.
    #[inline(always)]
    fn keep_loaded(&self, hash: table::Hash, key: &K, value: &V, cost: u32) -> Kept<K, V> {
        let fresh = |expires_at| expires_at == NEVER || expires_at > self.inner.clock.now_ms();
        self.keep_if(hash, key, value, cost, true, |present| !present.is_some_and(fresh))
    }

    /// Keeps a value if `may` says yes, which is told when the entry that is there expires.
    #[inline(always)]
    fn keep_if(
        &self,
        hash: table::Hash,
        key: &K,
        value: &V,
        cost: u32,
        is_load: bool,
        may: impl FnOnce(Option<u64>) -> bool,
    ) -> Kept<K, V> {
        let expires_at = self.expiry_of_new(key, value);
        let terms = self.terms(key, value, cost, expires_at);
        let kept = self.keep(hash, key.clone(), value.clone(), terms, is_load, may, |_| ());
        match kept {
            Ok((replaced, due)) => Kept { replaced, due, refused: None },
            Err(refused) => Kept { refused: Some(refused), ..Kept::default() },
        }
    }
}

/// What is left to do after a load was kept.
struct Kept<K, V> {
    replaced: Option<Removed<K, V>>,
    due: Due,
    /// What was not kept after all. It is dropped with the rest: to drop it is the user's code, and none runs under the
    /// board's lock.
    refused: Option<(K, V)>,
}

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Kept { replaced: None, due: Due::No, refused: None }
    }
}

impl<K, V> Kept<K, V> {
    fn finish<S>(self, inner: &Inner<K, V, S>, at: usize) {
        drop(self.refused);
        inner.notify_replaced(at, self.replaced);
        inner.maintain(at, self.due);
    }
}

/// What a load cost, as policies are told it: in microseconds.
fn cost(nanos: u64) -> u32 {
    u32::try_from(nanos / 1000).unwrap_or(u32::MAX)
}

/// What the end of a flight means for one passenger; `None` if it has to ask again: the flight was abandoned, or ended in
/// an error of a type that this passenger does not know.
fn shared<V, E: Send + Sync + 'static>(ended: Ended<V>) -> Option<Result<V, Arc<E>>> {
    match ended {
        Ended::Landed(Ok(value)) => Some(Ok(value)),
        Ended::Landed(Err(error)) => error.downcast::<E>().ok().map(Err),
        Ended::Abandoned => None,
    }
}

/// Waits for the end of a flight, and polls its load.
struct Passenger<'c, K: Hash + Eq, V, S> {
    cache: &'c Cache<K, V, S>,
    ticket: Ticket<K, V>,
    hash: table::Hash,
    at: usize,
    key: K,
}

impl<K: Hash + Eq, V, S> Unpin for Passenger<'_, K, V, S> {}

impl<K, V, S> Future for Passenger<'_, K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    type Output = Ended<V>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended<V>> {
        let Passenger { cache, ticket, hash, at, key } = self.get_mut();
        let mut kept = Kept::default();
        let polled = ticket.poll_end(cx, &mut |value, nanos| {
            kept = cache.keep_loaded(*hash, key, value, cost(nanos));
        });
        kept.finish(&cache.inner, *at);
        polled
    }
}

/// A key whose entry is to be looked at and filled. From [`Cache::entry`].
#[derive(Debug)]
pub struct EntrySelector<'c, K, V, S> {
    cache: &'c Cache<K, V, S>,
    key: K,
}

impl<K, V, S> EntrySelector<'_, K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    /// The entry, filled with `value` if there is none.
    pub fn or_insert(self, value: V) -> Entry<K, V> {
        self.or_insert_with(|| value)
    }

    /// The entry, filled by `load` if there is none; one load for concurrent callers.
    ///
    /// # Panics
    /// As [`Cache::get_with`].
    pub fn or_insert_with(self, load: impl FnOnce() -> V) -> Entry<K, V> {
        let mut is_fresh = false;
        let value = self.cache.get_with(self.key.clone(), || {
            is_fresh = true;
            load()
        });
        Entry { key: self.key, value, is_fresh }
    }

    /// The entry, filled by `load` if there is none.
    ///
    /// # Errors
    /// As [`Cache::try_get_with`].
    ///
    /// # Panics
    /// As [`Cache::get_with`].
    pub fn or_try_insert_with<E>(self, load: impl FnOnce() -> Result<V, E>) -> Result<Entry<K, V>, Arc<E>>
    where
        E: Send + Sync + 'static,
    {
        let mut is_fresh = false;
        let value = self.cache.try_get_with(self.key.clone(), || {
            is_fresh = true;
            load()
        })?;
        Ok(Entry { key: self.key, value, is_fresh })
    }

    /// Puts in what `update` makes of the old value. Concurrent updates of the key run one after the other; a load of it
    /// that is in flight ends first.
    ///
    /// # Panics
    /// `update` loads or updates the same key, and would have waited for itself.
    pub fn and_upsert_with(self, update: impl FnOnce(Option<V>) -> V) -> Entry<K, V> {
        let (hash, at) = self.cache.hash(&self.key);
        let inner = &self.cache.inner;
        loop {
            match inner.board.board(By::Thread, hash.0, &self.key, None, || None::<V>, || None) {
                Ok(_) => {}
                Err(Boarding::Join(ticket)) => drop(ticket.wait()),
                Err(Boarding::Lead(lead)) => {
                    let old = self.cache.get_hashed(hash, at, &self.key);
                    let was_there = old.is_some();
                    let value = update(old);
                    // What was made of an entry that is gone by now would bring it back.
                    let may = |present: Option<u64>| !was_there || present.is_some();
                    let mut kept = Kept::default();
                    lead.land(
                        None,
                        || Ok(value.clone()),
                        || kept = self.cache.keep_if(hash, &self.key, &value, 0, false, may),
                    );
                    kept.finish(inner, at);
                    return Entry { key: self.key, value, is_fresh: true };
                }
            }
        }
    }
}

/// A key and its value, as they were when it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<K, V> {
    key: K,
    value: V,
    is_fresh: bool,
}

impl<K, V> Entry<K, V> {
    /// The key.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The value.
    pub fn value(&self) -> &V {
        &self.value
    }

    /// The value.
    pub fn into_value(self) -> V {
        self.value
    }

    /// Whether this call put the value in.
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }
}
