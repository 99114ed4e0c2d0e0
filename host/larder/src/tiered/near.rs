//! Tier 0: copies in the engine's [`Cache`], with their terms and their fences.
//!
//! A hit is one read of the cache: is the copy quiet still, and has no group been invalidated since it was looked at? All
//! else takes the slow way.
//!
//! **Fences.** Keys share a few thousand of them: an array costs the same for any number of keys, and remembers
//! invalidations of keys that are not there. That two keys have one means that now and then a fill is not kept for the
//! sake of another key. Keeping and invalidating happen under the fence's lock, so nothing gets between.

use std::borrow::Cow;
use std::hash::{BuildHasher, Hash};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::copies::Copies;
use super::groups::{Group, Groups, Reached};
use crate::cache::Place;
use crate::engine::steps::{Facts, Marks, Terms};
use crate::eviction::NEVER;
use crate::table::is_brief;
use crate::{Cache, Clock};

/// What can be a key of tiers: it has a text, by which other processes know it, and prefixes are told.
pub trait Key: Hash + Eq + Clone + Send + Sync + 'static {
    /// The key as text; different for different keys.
    fn text(&self) -> Cow<'_, str>;

    /// Appends [`Self::text`].
    fn write_text(&self, to: &mut String) {
        to.push_str(&self.text());
    }

    /// The key of a text; `None` if it is none.
    fn of_text(text: &str) -> Option<Self>;

    /// The key as an integer, for databases that keep such keys as integers; `None` for all keys of the type, or for none.
    fn integer(&self) -> Option<i128> {
        None
    }
}

impl Key for String {
    fn text(&self) -> Cow<'_, str> {
        Cow::Borrowed(self)
    }
    fn of_text(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

impl Key for Arc<str> {
    fn text(&self) -> Cow<'_, str> {
        Cow::Borrowed(self)
    }
    fn of_text(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

macro_rules! numbers_are_keys {
    ($($number:ty: $integer:expr),*) => {$(
        impl Key for $number {
            fn text(&self) -> Cow<'_, str> {
                Cow::Owned(self.to_string())
            }
            fn write_text(&self, to: &mut String) {
                to.push_str(itoa::Buffer::new().format(*self));
            }
            fn of_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }
            fn integer(&self) -> Option<i128> {
                let integer: fn($number) -> Option<i128> = $integer;
                integer(*self)
            }
        }
    )*};
}
numbers_are_keys!(
    u32: |key| Some(key.into()),
    u64: |key| Some(key.into()),
    // No database has integers of 128 bits.
    u128: |_| None,
    i32: |key| Some(key.into()),
    i64: |key| Some(key.into())
);

/// A copy of a value, without the value: its terms, and what else is known of it. Moments are those of the cache's clock.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) fresh_until: AtomicU64,
    /// How long it is quiet from the moment on at which it is kept.
    quiet_until: u64,
    /// The source has no such key.
    negative: bool,
    pub(crate) validator: Option<Arc<str>>,
    pub(crate) tags: Arc<[Arc<str>]>,
    pub(crate) born: u64,
    pub(crate) stale_ms: u64,
    pub(crate) rescue_ms: u64,
    pub(crate) early_us: u64,
    pub(crate) cost_us: u64,
    pub(crate) size: u32,
    /// What the groups' counter was before it was loaded.
    pub(crate) stamp: u64,
}

/// What lies in the cache's table: of the copy, all that a hit reads. The rest is beside it ([`Copies`]).
///
/// Not an `Option` of the value: for a number that would be 8 bytes more.
pub(crate) struct Seat<V> {
    looks: AtomicU64,
    /// Initialised, unless the copy is negative: so says `looks` from the beginning, and always.
    value: MaybeUninit<V>,
}

/// What a hit asks beside the value, in one word: whether the source has such a key (a bit), how long the copy is quiet (31 bits),
/// and up to which value of the groups' counter nothing has reached it.
#[derive(Clone, Copy)]
struct Looks(u64);

impl Looks {
    /// The quiet time counts in 16 ms, which is more than a year; what is cut off only has a reader ask early.
    const SHIFT: u32 = 4;
    const ALWAYS: u32 = u32::MAX >> 1;
    /// The longest quiet time that has an end.
    const LONGEST: u32 = Self::ALWAYS - 2;
    /// What no seat looks like.
    const NOBODYS: Looks = Looks((Self::ALWAYS as u64 - 1) << 32);
    /// The source has no such key.
    const NEGATIVE: u64 = 1 << 63;

    fn new(quiet_until: u64, counter: u64) -> Self {
        let quiet = match quiet_until {
            NEVER => Self::ALWAYS,
            until => u32::try_from(until >> Self::SHIFT).unwrap_or(Self::LONGEST).min(Self::LONGEST),
        };
        Looks(u64::from(quiet) << 32 | counter & u64::from(u32::MAX))
    }

    /// Those of a value that is quiet without end, and that nothing has reached.
    fn calm(counter: u64) -> Looks {
        Looks(u64::from(Self::ALWAYS) << 32 | counter & u64::from(u32::MAX))
    }

    #[inline]
    fn is_negative(self) -> bool {
        self.0 & Self::NEGATIVE != 0
    }

    /// Of the counter its low half is known. See [`Near::bump`].
    fn is_verified(self, counter: u64) -> bool {
        self.0 as u32 == counter as u32
    }

    #[inline]
    fn quiet(self) -> u32 {
        (self.0 >> 32) as u32 & Self::ALWAYS
    }

    fn is_quiet(self, now: u64) -> bool {
        self.quiet() == Self::ALWAYS || u64::from(self.quiet()) > now >> Self::SHIFT
    }

    fn with_quiet(self, other: Looks) -> Looks {
        Looks(u64::from(other.quiet()) << 32 | self.0 & (Self::NEGATIVE | u64::from(u32::MAX)))
    }

    fn with_verified(self, other: Looks) -> Looks {
        Looks(self.0 & !u64::from(u32::MAX) | other.0 & u64::from(u32::MAX))
    }
}

impl<V> Seat<V> {
    fn new(value: Option<V>, copy: &Copy) -> Self {
        let Looks(looks) = Looks::new(copy.quiet_until, copy.stamp);
        match value {
            Some(value) => Seat { looks: AtomicU64::new(looks), value: MaybeUninit::new(value) },
            None => Seat { looks: AtomicU64::new(looks | Looks::NEGATIVE), value: MaybeUninit::uninit() },
        }
    }

    #[inline]
    fn looks(&self) -> Looks {
        Looks(self.looks.load(Ordering::Acquire))
    }

    /// Changes how long it is quiet, or what it is verified for.
    fn change(&self, change: impl Fn(Looks) -> Looks) {
        let change = |looks| {
            let Looks(changed) = change(Looks(looks));
            Some(changed & !Looks::NEGATIVE | looks & Looks::NEGATIVE)
        };
        // That it failed would be to have nothing to change it to.
        let _ = self.looks.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }

    /// The value, also for weighers.
    #[inline]
    pub(crate) fn value(&self) -> Option<&V> {
        self.value_of(self.looks())
    }

    /// The value, where its looks were read already.
    #[inline]
    fn value_of(&self, looks: Looks) -> Option<&V> {
        if looks.is_negative() {
            return None;
        }
        // SAFETY: `new` initialised it, since it did not set the bit that says otherwise, and nobody else does.
        Some(unsafe { self.value.assume_init_ref() })
    }

    /// The value, for listeners.
    pub(crate) fn into_value(self) -> Option<V> {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: it is there, as `value` says, is read once, and `this` is not dropped.
        this.value().map(|value| unsafe { std::ptr::read(value) })
    }
}

impl<V> Drop for Seat<V> {
    fn drop(&mut self) {
        if !self.looks().is_negative() {
            // SAFETY: as in `value`; it is not used any more.
            unsafe { self.value.assume_init_drop() };
        }
    }
}

/// For the cache's own sake, where it hands values out; nothing here does.
impl<V: Clone> Clone for Seat<V> {
    fn clone(&self) -> Self {
        let value = self.value().map_or_else(MaybeUninit::uninit, |value| MaybeUninit::new(value.clone()));
        Seat { looks: AtomicU64::new(self.looks().0), value }
    }
}

impl<V: std::fmt::Debug> std::fmt::Debug for Seat<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Seat").field(&self.value()).finish()
    }
}

/// A later moment; `NEVER` stays.
pub(crate) fn after(now: u64, ms: u64) -> u64 {
    now.saturating_add(ms)
}

/// What is left of a duration; one without end stays.
fn left(duration: u64, passed: u64) -> u64 {
    if duration == NEVER { NEVER } else { duration.saturating_sub(passed) }
}

impl Copy {
    /// A copy that is kept from `now` on.
    #[allow(clippy::too_many_arguments)] // One place.
    pub(crate) fn new(
        negative: bool,
        validator: Option<Arc<str>>,
        tags: Arc<[Arc<str>]>,
        born: u64,
        cost_us: u64,
        size: u32,
        terms: &Terms,
        now: u64,
        stamp: u64,
    ) -> Self {
        let mut copy = Copy {
            negative,
            validator,
            tags,
            born,
            fresh_until: AtomicU64::new(0),
            quiet_until: 0,
            stale_ms: 0,
            rescue_ms: 0,
            early_us: 0,
            cost_us,
            size,
            stamp,
        };
        copy.set_terms(terms, now, stamp);
        copy
    }

    /// Is kept on other terms from `now` on.
    pub(crate) fn set_terms(&mut self, terms: &Terms, now: u64, stamp: u64) {
        let fresh = terms.fresh_ms.min(terms.near_ms);
        *self.fresh_until.get_mut() = after(now, fresh);
        self.quiet_until = after(now, terms.quiet_ms.min(fresh));
        (self.stale_ms, self.rescue_ms, self.early_us) = (terms.stale_ms, terms.rescue_ms, terms.early_us);
        self.stamp = stamp;
    }

    /// The same copy, kept on other terms from `now` on.
    pub(crate) fn on_other_terms(&self, terms: &Terms, now: u64, stamp: u64) -> Self {
        let Copy { negative, born, cost_us, size, .. } = *self;
        Copy::new(negative, self.validator.clone(), self.tags.clone(), born, cost_us, size, terms, now, stamp)
    }

    pub(crate) fn fresh_until(&self) -> u64 {
        self.fresh_until.load(Ordering::Acquire)
    }

    /// The facts, where it ended at `fresh_until`.
    pub(crate) fn facts(&self, tier: u8, fresh_until: u64, now: u64) -> Facts {
        let fresh_ms = if fresh_until == NEVER { NEVER } else { fresh_until.saturating_sub(now) };
        let beyond = now.saturating_sub(fresh_until);
        let mut marks = Marks::empty();
        if self.negative {
            marks |= Marks::NEGATIVE;
        }
        if self.validator.is_some() {
            marks |= Marks::VALIDATOR;
        }
        Facts {
            tier,
            age_ms: now.saturating_sub(self.born),
            fresh_ms,
            stale_ms: left(self.stale_ms, beyond),
            rescue_ms: left(self.rescue_ms, beyond),
            early_us: self.early_us,
            cost_us: self.cost_us,
            size: self.size,
            marks,
        }
    }

    /// The moment after which it may not be served at all.
    fn ends(&self) -> u64 {
        after(self.fresh_until(), self.stale_ms.max(self.rescue_ms))
    }
}

/// What has to be the same still for something to be kept in tier 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    /// The number of the key's fence, and how far that had moved.
    place: u32,
    fence: u64,
    pub(crate) stamp: u64,
}

#[derive(Default)]
struct Fence {
    /// Invalidations and writes so far. Written under the lock, and last: who reads the new number without it finds all done
    /// that it stands for.
    moved: AtomicU64,
    state: Mutex<Reach>,
}

/// What the invalidations and writes of a fence did.
#[derive(Default)]
struct Reach {
    /// What `moved` was after the last of them that made copies go.
    hard: u64,
    /// When freshness was ended last.
    soft_at: u64,
}

impl Fence {
    #[inline]
    fn moved(&self) -> u64 {
        self.moved.load(Ordering::Acquire)
    }

    /// One more, of those that make copies go if `hard`.
    fn moves(&self, reach: &mut Reach, hard: bool) {
        let moved = self.moved() + 1;
        if hard {
            reach.hard = moved;
        }
        self.moved.store(moved, Ordering::Release);
    }
}

const FENCES: usize = 4096;

/// Tier 0.
pub(crate) struct Near<K, V> {
    pub(crate) cache: Cache<K, Seat<V>>,
    copies: Copies,
    pub(crate) clock: Clock,
    fences: Box<[Fence]>,
    groups: RwLock<Groups>,
    /// The groups' counter.
    counter: AtomicU64,
    /// How what may be served without another look looks: [`Looks::calm`] of that counter; where there is a bus, on which trust
    /// depends, [`Looks::NOBODYS`]. Written under the lock of the groups.
    calm: AtomicU64,
    /// Until when this process hears what others invalidate, as the bus has it; from then on all is absent.
    trusted_until: AtomicU64,
    /// Reads that found a copy and had to ask.
    asked: AtomicU64,
    hasher: foldhash::fast::RandomState,
}

/// A copy with its value, and when its freshness ends or ended.
pub(crate) struct Found<V> {
    pub(crate) value: Option<V>,
    pub(crate) copy: Arc<Copy>,
    pub(crate) until: u64,
}

/// What a quick look finds.
pub(crate) enum Quick<V, T> {
    /// A copy that may be served without asking.
    Quiet(Option<V>, T),
    /// A copy, or what was one: ask.
    Ask,
    /// Nothing.
    Absent,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Near<K, V> {
    pub(crate) fn new(cache: Cache<K, Seat<V>>, clock: Clock) -> Self {
        Near {
            copies: Copies::new(cache.shards()),
            cache,
            clock,
            fences: (0..FENCES).map(|_| Fence::default()).collect(),
            groups: RwLock::default(),
            counter: AtomicU64::new(0),
            calm: AtomicU64::new(Looks::calm(0).0),
            trusted_until: AtomicU64::new(NEVER),
            asked: AtomicU64::new(0),
            hasher: foldhash::fast::RandomState::default(),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.now_ms()
    }

    /// See [`Listener::trust_until`](super::Listener::trust_until).
    pub(crate) fn trust_until(&self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let until = self.now() + left.as_millis() as u64;
        if self.trusted_until.swap(until, Ordering::AcqRel) == NEVER {
            let _groups = self.groups.write();
            self.calm.store(Looks::NOBODYS.0, Ordering::Release);
        }
    }

    /// Whether this process hears what others invalidate. To be asked before the copy is looked at.
    pub(crate) fn is_trusted(&self) -> bool {
        let until = self.trusted_until.load(Ordering::Acquire);
        until == NEVER || until > self.now()
    }

    pub(crate) fn hash(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    fn fence(&self, key: &K) -> &Fence {
        &self.fences[self.place(key) as usize]
    }

    /// The number of a key's fence.
    fn place(&self, key: &K) -> u32 {
        (self.hash(key) % FENCES as u64) as u32
    }

    /// The fence of the key that this is the token of.
    fn fence_of(&self, token: &Token) -> &Fence {
        &self.fences[token.place as usize % FENCES]
    }

    /// Reads the fences of these tokens, whose memory the processor so asks for all at once, before each is looked at in turn.
    pub(crate) fn fetch<'t>(&self, tokens: impl Iterator<Item = &'t Token>) {
        let moved = tokens.map(|token| self.fence_of(token).moved.load(Ordering::Relaxed));
        std::hint::black_box(moved.fold(0, std::ops::BitXor::bitxor));
    }

    /// Calls `f` with the seat of a key and its copy, under the shared lock of both.
    fn peek<R>(&self, key: &K, f: impl FnOnce(&Seat<V>, &Arc<Copy>) -> R) -> Option<R> {
        let found = self.cache.peek_placed(key, |seat, place| self.copy_at(place, |copy| f(seat, copy)));
        found.flatten()
    }

    /// Calls `f` with the copy of a place at which the cache has just found a seat, under whose lock this is called.
    fn copy_at<R>(&self, place: Place, f: impl FnOnce(&Arc<Copy>) -> R) -> Option<R> {
        // SAFETY: for as long as the cache calls what it was given with a place, it holds its lock.
        unsafe { self.copies.at(place, f) }
    }

    /// A hit, if it can be had at once.
    #[inline(always)]
    pub(crate) fn quick(&self, key: &K) -> Quick<V, ()> {
        self.quick_with(key, |_| Some(()))
    }

    /// A hit, if it can be had at once, with when the copy was born and until when it is fresh.
    pub(crate) fn quick_dated(&self, key: &K) -> Quick<V, (u64, u64)> {
        self.quick_with(key, |place| self.copy_at(place, |copy| (copy.born, copy.fresh_until())))
    }

    #[inline(always)]
    fn quick_with<T>(&self, key: &K, also: impl FnOnce(Place) -> Option<T>) -> Quick<V, T> {
        // Before anything else: it is extended after what was announced has been done.
        let trusted_until = self.trusted_until.load(Ordering::Acquire);
        // Beside what the table hands on, as in `Cache::read_slot`.
        let mut answer = None;
        let found = self.cache.read(key, is_brief::<V>(), |seat, place, now| {
            let looks = seat.looks();
            let is_calm = looks.0 == self.calm.load(Ordering::Acquire);
            if is_calm || self.is_quiet(looks, trusted_until, now) {
                let quiet = also(place).map(|also| (seat.value_of(looks).cloned(), also));
                // There was none; to assign would look whether there is one to drop.
                std::mem::forget(std::mem::replace(&mut answer, quiet));
            }
        });
        match answer {
            Some((value, also)) => Quick::Quiet(value, also),
            None => self.no_quick(found.is_some()),
        }
    }

    /// What a quick look comes to that brings nothing.
    #[cold]
    fn no_quick<T>(&self, found: bool) -> Quick<V, T> {
        if !found {
            return Quick::Absent;
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        Quick::Ask
    }

    /// Whether a copy that looks so may be served without asking. `now` is 0 if it is not known yet.
    #[inline(never)]
    fn is_quiet(&self, looks: Looks, trusted_until: u64, now: u64) -> bool {
        if !looks.is_verified(self.counter.load(Ordering::Acquire)) {
            return false;
        }
        if looks.quiet() == Looks::ALWAYS && trusted_until == NEVER {
            return true;
        }
        let now = if now == 0 { self.now() } else { now };
        looks.is_quiet(now) && now < trusted_until
    }

    /// How many of the cache's hits were no hits of a quiet copy.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// The token of a key; to be taken before its copy is looked at.
    pub(crate) fn token(&self, key: &K) -> Token {
        let stamp = self.counter.load(Ordering::Acquire);
        let place = self.place(key);
        Token { place, fence: self.fences[place as usize].moved(), stamp }
    }

    /// The value and the copy of a key, if nothing has reached it.
    pub(crate) fn look(&self, key: &K) -> Option<Found<V>> {
        if !self.is_trusted() {
            return None;
        }
        let counter = self.counter.load(Ordering::Acquire);
        let (value, copy, looks) = self.peek(key, |seat, copy| (seat.value().cloned(), copy.clone(), seat.looks()))?;
        if !looks.is_verified(counter) {
            // Written down, so that the next reader need not look it up; not over what somebody has seen later.
            let verified = Looks::new(0, counter);
            let is_older = |now: Looks| (counter as u32).wrapping_sub(now.0 as u32) < 1 << 31;
            let verify = |seat: &Seat<V>, there: &Arc<Copy>, ended: bool| {
                if !Arc::ptr_eq(there, &copy) {
                    return;
                }
                if ended {
                    seat.change(|looks| looks.with_quiet(Looks::new(0, 0)));
                }
                seat.change(|now| if is_older(now) { now.with_verified(verified) } else { now });
            };
            match self.groups.read().reached(&key.text(), &copy.tags, copy.stamp) {
                Reached::Superseded => return None,
                Reached::Untouched => {
                    self.peek(key, |seat, there| verify(seat, there, false));
                }
                Reached::Ended(at) => {
                    copy.fresh_until.fetch_min(at, Ordering::AcqRel);
                    self.peek(key, |seat, there| verify(seat, there, true));
                }
            }
        }
        let until = copy.fresh_until();
        Some(Found { value, copy, until })
    }

    /// What has reached a copy that an operation holds since it took its token.
    pub(crate) fn reached(&self, key: &K, token: &Token, tags: &[Arc<str>], stamp: u64) -> Reached {
        let fence = self.fence_of(token);
        let fence = if fence.moved() == token.fence {
            Reached::Untouched
        } else {
            let reach = fence.state.lock();
            if reach.hard > token.fence {
                return Reached::Superseded;
            }
            Reached::Ended(reach.soft_at)
        };
        if self.counter.load(Ordering::Acquire) == stamp {
            return fence;
        }
        match (fence, self.groups.read().reached(&key.text(), tags, stamp)) {
            (_, Reached::Superseded) => Reached::Superseded,
            (Reached::Ended(a), Reached::Ended(b)) => Reached::Ended(a.min(b)),
            (Reached::Untouched, other) => other,
            (ended, _) => ended,
        }
    }

    /// Keeps a copy by the key's token; `false`: it was fenced. A write moves the fence.
    pub(crate) fn keep(
        &self,
        key: &K,
        value: Option<V>,
        copy: Arc<Copy>,
        token: &Token,
        writes: bool,
        now: u64,
    ) -> bool {
        let fence = self.fence_of(token);
        let mut reach = fence.state.lock();
        if fence.moved() != token.fence {
            return false;
        }
        // A group that is invalidated from here on is seen by whoever reads the copy: its stamp is older.
        if self.counter.load(Ordering::Acquire) != token.stamp
            && self.groups.read().reached(&key.text(), &copy.tags, token.stamp) != Reached::Untouched
        {
            return false;
        }
        let ends = copy.ends();
        if ends != NEVER && ends <= now {
            self.cache.invalidate(key);
        } else {
            let cost = copy.cost_us;
            let (seat, mut copy) = (Seat::new(value, &copy), Some(copy));
            self.cache.insert_placed(key.clone(), seat, cost, ends, |place| {
                if let Some(copy) = copy.take() {
                    // SAFETY: the cache calls this under the exclusive lock of the place.
                    unsafe { self.copies.put(place, copy) }
                }
            });
        }
        if writes {
            fence.moves(&mut reach, true);
        }
        true
    }

    /// Sets how long a copy is quiet, if it is still there and still ends when its server was told.
    pub(crate) fn hush(&self, key: &K, copy: &Arc<Copy>, told: u64, quiet_until: u64) {
        let _fence = self.fence(key).state.lock();
        self.peek(key, |seat, there| {
            if !Arc::ptr_eq(there, copy) {
                return;
            }
            // Whoever finds that a group has ended it says so in the copy first, and in the seat then, without the fence: so
            // that the copy still ends when its server was told is asked of the seat as it is when it changes.
            let longer = Looks::new(quiet_until, 0);
            let as_told = |looks: Looks| copy.fresh_until() == told && looks.quiet() < longer.quiet();
            seat.change(|looks| if as_told(looks) { looks.with_quiet(longer) } else { looks });
        });
    }

    /// Takes the copy of a key away, or ends its freshness.
    pub(crate) fn invalidate(&self, key: &K, soft: bool) {
        let now = self.now();
        let fence = self.fence(key);
        let mut reach = fence.state.lock();
        if soft {
            reach.soft_at = now;
            self.peek(key, |seat, copy| {
                copy.fresh_until.fetch_min(now, Ordering::AcqRel);
                seat.change(|looks| looks.with_quiet(Looks::new(0, 0)));
            });
        } else {
            self.cache.invalidate(key);
        }
        fence.moves(&mut reach, !soft);
    }

    /// Invalidates a group.
    pub(crate) fn bump(&self, group: &Group, soft: bool) {
        let now = self.now();
        let mut groups = self.groups.write();
        let counter = groups.bump(group, soft, now);
        self.counter.store(counter, Ordering::Release);
        // Either way another word than before: where trust has just begun, whoever began it may not have said so here yet.
        let has_bus = self.trusted_until.load(Ordering::Acquire) != NEVER;
        let calm = if has_bus { Looks::NOBODYS } else { Looks::calm(counter) };
        self.calm.store(calm.0, Ordering::Release);
        // Seats have the low half of the counter: none may be so old that it could be taken for a later one.
        if counter.is_multiple_of(1 << 31) {
            self.cache.invalidate_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(fresh_ms: u64) -> Terms {
        Terms { fresh_ms, stale_ms: 1_000, rescue_ms: 0, near_ms: NEVER, quiet_ms: fresh_ms, early_us: 0 }
    }

    fn near() -> (Near<String, u32>, Clock) {
        let clock = Clock::manual();
        let cache = Cache::builder().max_capacity(100).clock(clock.clone()).build().unwrap();
        (Near::new(cache, clock.clone()), clock)
    }

    fn keep(near: &Near<String, u32>, key: &str, value: u32, token: &Token, tag: &str) -> bool {
        let copy = Copy::new(false, None, [tag.into()].into(), 1, 0, 4, &terms(100), near.now(), token.stamp);
        near.keep(&key.into(), Some(value), Arc::new(copy), token, false, near.now())
    }

    /// Keeps a copy, with the tag `t`, that is quiet without end.
    fn keep_for_ever(near: &Near<String, u32>, key: &String) -> bool {
        let terms = Terms { fresh_ms: NEVER, stale_ms: 0, rescue_ms: 0, near_ms: NEVER, quiet_ms: NEVER, early_us: 0 };
        let token = near.token(key);
        let copy = Copy::new(false, None, ["t".into()].into(), 1, 0, 4, &terms, near.now(), token.stamp);
        near.keep(key, Some(1), Arc::new(copy), &token, false, near.now())
    }

    fn hit(near: &Near<String, u32>, key: &str) -> Option<u32> {
        match near.quick(&key.into()) {
            Quick::Quiet(value, _) => value,
            Quick::Ask | Quick::Absent => None,
        }
    }

    #[test]
    fn what_began_before_an_invalidation_is_not_kept() {
        let (near, _) = near();
        let key = "user/1".to_string();
        let invalidations: [&dyn Fn(); 5] = [
            &|| near.invalidate(&key, false),
            &|| near.invalidate(&key, true),
            &|| near.bump(&Group::Tag("t".into()), false),
            &|| near.bump(&Group::Prefix("user/".into()), true),
            &|| near.bump(&Group::Prefix("".into()), false),
        ];
        for invalidate in invalidations {
            let token = near.token(&key);
            invalidate();
            assert!(!keep(&near, &key, 1, &token, "t"));
            assert!(keep(&near, &key, 2, &near.token(&key), "t"));
            assert_eq!(hit(&near, &key), Some(2));
            let held = near.token(&key);
            invalidate();
            assert_eq!(hit(&near, &key), None, "an invalidation ends the quiet time");
            assert_ne!(near.reached(&key, &held, &["t".into()], held.stamp), Reached::Untouched);
        }
    }

    #[test]
    fn a_soft_invalidation_leaves_a_stale_copy() {
        let (near, clock) = near();
        let key = "k".to_string();
        assert!(keep(&near, &key, 1, &near.token(&key), "t"));
        clock.advance(std::time::Duration::from_millis(10));
        near.bump(&Group::Tag("t".into()), true);
        clock.advance(std::time::Duration::from_millis(10));
        let Found { copy, until, .. } = near.look(&key).unwrap();
        let facts = copy.facts(0, until, near.now());
        assert_eq!((facts.fresh_ms, facts.stale_ms), (0, 990));
        // A quiet time for the copy as it was is not set on it as it is.
        near.hush(&key, &copy, until + 90, near.now() + 50);
        assert_eq!(hit(&near, &key), None);
        near.hush(&key, &copy, until, near.now() + 50);
        assert_eq!(hit(&near, &key), Some(1));
    }

    #[test]
    fn another_tag_ends_a_hit_for_no_longer_than_a_look() {
        let (near, _) = near();
        let key = "k".to_string();
        assert!(keep(&near, &key, 1, &near.token(&key), "t"));
        near.bump(&Group::Tag("other".into()), false);
        assert_eq!(hit(&near, &key), None);
        assert!(near.look(&key).is_some());
        assert_eq!(hit(&near, &key), Some(1));
    }

    #[test]
    fn a_hit_lasts_as_long_as_the_bus_is_heard_where_there_is_one() {
        let (near, clock) = near();
        let key = "k".to_string();
        let put = || keep_for_ever(&near, &key);
        let second = std::time::Duration::from_secs(1);
        assert!(put());
        clock.advance(second);
        assert_eq!(hit(&near, &key), Some(1), "without a bus there is nothing to miss");
        near.trust_until(Instant::now() + 10 * second);
        assert_eq!(hit(&near, &key), Some(1));
        clock.advance(11 * second);
        assert_eq!(hit(&near, &key), None);
        // To invalidate something does not make it heard.
        near.bump(&Group::Tag("other".into()), false);
        assert!(put());
        assert_eq!(hit(&near, &key), None);
        near.trust_until(Instant::now() + 10 * second);
        assert_eq!(hit(&near, &key), Some(1));
    }

    /// The first word of a bus, cut short before all of it is told, and an invalidation in between.
    #[test]
    fn an_invalidation_while_trust_begins_ends_hits() {
        let (near, _) = near();
        let key = "k".to_string();
        assert!(keep_for_ever(&near, &key));
        near.trusted_until.store(near.now() + 10_000, Ordering::Release);
        near.bump(&Group::Tag("t".into()), false);
        assert_eq!(hit(&near, &key), None);
    }
}
