//! The table of a shard: from keys to entries, with a lock in each bucket.
//!
//! # Shape
//!
//! A *bucket* is one cache line: eleven tags of 8 bits, eleven slots, and a pointer to more lanes in the rare case that
//! twelve keys meet. A *cell* is where an entry lies: its key and its value. A slot names a cell for as
//! long as the entry lives, whatever the table does, so a policy can use it as an index. A hit reads two cache lines
//! that are not at hand anyway, the bucket's and the cell's, and writes neither: the locks, and a bit for each slot that
//! says "read since the policy last heard", lie in small arrays that stay in the caches of the processor. (Two things
//! were tried and cost half the speed: the lock in the bucket's own line, and a counter in the cell. The next locked
//! instruction waits until a line that was written has come from memory, and so hits no longer overlap.)
//!
//! What only maintenance asks of an entry lies beside the cells: the location of its key (4 bytes a slot), what it weighs (4 bytes,
//! if there is a weigher), and when it expires (8 bytes, if any does). So more entries fit into the processor's caches, and only
//! where entries expire does a hit read a third line, which it need not wait for before the second.
//!
//! The table grows by *linear hashing* (Litwin, VLDB 80): when it is too full, one bucket is split in two. No operation
//! ever waits for a rehash, and nothing moves but slot numbers. Buckets and cells live in arrays that grow by segments, so
//! their addresses never change; a table of known size has its first segments as large as a full one needs, and finds
//! what it looks for with one comparison. The number of buckets that it begins with is chosen so that a full cache of
//! known size ends at the end of a round, where all buckets are equally full.
//!
//! The buckets that descend from one of those that it began with are a *column*, and a key never leaves its column. A
//! column has one lock. So whoever holds it sees the column's buckets stand still, though the table grows elsewhere.
//!
//! # Why the `unsafe` is sound
//!
//! The lanes of a bucket are read under the lock of its column, shared or exclusive, and written under the exclusive one.
//! The content of a cell is reached only in these ways:
//!
//! 1. *Linked*: its slot is in exactly one bucket, that of its key. Whoever reads it holds that column's lock, at least
//!    shared; whoever replaces, moves or takes it holds it exclusively.
//! 2. *Owned*: a slot that is in no bucket belongs to whoever was given it: by unlinking, or from the list of free
//!    slots, which gives each out once. Its content is uninitialised: `unlink` moves it out, and only `link`, which
//!    takes the slot, writes it.
//!
//! So initialised means linked, and a reference to the content never outlives the guard through which it was got.
//! All that lies beside the cells is atomic. `link` is `unsafe` because only the caller knows that it owns the slot.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::AtomicBool;

use crate::eviction::{NEVER, Slot};
use crate::locks::{Alone, SharedLock};
use crate::segment::{Array, Zeroable};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering};

/// Keys per bucket line.
const LANES: usize = 11;
/// A bit for each lane.
const ALL_LANES: u32 = (1 << LANES) - 1;
/// How full buckets are on average before one is split: about 11 % of them then have more keys than lanes, and 3 % of
/// the keys lie beyond.
const FILL: u64 = 8;
/// Locks of a table, at most. A shard has a few threads at a time.
const MOST_COLUMNS: u64 = 128;
/// Cells that a table of unknown size begins with.
const FEW_CELLS: usize = 64;
/// Bytes of each array that are set aside for a table of known size, at most. They take memory as they are used.
const SET_ASIDE: usize = 64 << 20;

/// Which parts of a key's 64-bit hash are used where: the low half finds the bucket, the next 8 bits are the tag, and
/// the highest 16 choose the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hash(pub(crate) u64);

impl Hash {
    #[inline]
    pub(crate) fn location(self) -> u32 {
        self.0 as u32
    }

    /// Never 0, which marks an empty lane.
    #[inline]
    fn tag(self) -> u8 {
        ((self.0 >> 32) as u8).max(1)
    }
}

/// Whether to clone a `V` is over in no time: it owns nothing, and is small. Any other clone may take as long as it likes, and
/// others must be able to look at the same column meanwhile.
pub(crate) const fn is_brief<V>() -> bool {
    !std::mem::needs_drop::<V>() && size_of::<V>() <= 64
}

/// Lanes of a bucket: tag 0 is empty. All-zero bytes are an empty one.
#[repr(C)]
struct Lanes {
    more: Option<Box<Lanes>>,
    slots: [Slot; LANES],
    /// One more than there are lanes, always empty, so that tags are compared in words.
    tags: [u8; LANES + 1],
}

impl Lanes {
    const fn empty() -> Self {
        Lanes { more: None, slots: [0; LANES], tags: [0; LANES + 1] }
    }

    /// A bit for each lane with this tag.
    #[inline]
    fn matches(&self, tag: u8) -> u32 {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        let equal = {
            use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi8};
            let [a, b, c, d, e, f, g, h, i, j, k, l] = self.tags;
            let low = i64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let high = i64::from(u32::from_le_bytes([i, j, k, l]));
            // SAFETY: arithmetic on registers, with instructions (SSE2) that every x86-64 has.
            unsafe {
                let (tags, tag) = (_mm_set_epi64x(high, low), _mm_set1_epi8(tag.cast_signed()));
                _mm_movemask_epi8(_mm_cmpeq_epi8(tags, tag)) as u32
            }
        };
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let equal = self.tags.iter().enumerate().fold(0, |bits, (lane, &t)| bits | u32::from(t == tag) << lane);
        equal & ALL_LANES
    }

    /// A bit for each lane that is taken.
    #[inline]
    fn taken(&self) -> u32 {
        !self.matches(0) & ALL_LANES
    }

    /// Where the first slot lies whose tag is `tag` and of which `found` has something to say.
    #[inline]
    fn find<R>(&self, tag: u8, mut found: impl FnMut(Slot) -> Option<R>) -> Option<(Spot, R)> {
        let (mut lanes, mut depth) = (self, 0);
        loop {
            let mut matches = lanes.matches(tag);
            while matches != 0 {
                let lane = matches.trailing_zeros() as usize;
                let slot = lanes.slots[lane];
                if let Some(found) = found(slot) {
                    return Some((Spot { depth, lane, slot }, found));
                }
                matches &= matches - 1;
            }
            lanes = lanes.more.as_deref()?;
            depth += 1;
        }
    }

    /// Where a slot lies.
    #[inline]
    fn find_slot(&self, slot: Slot) -> Option<Spot> {
        let (mut lanes, mut depth) = (self, 0);
        loop {
            // All lanes are compared, and no branch depends on which it is.
            let equal = lanes.slots.iter().enumerate().fold(0, |bits, (lane, &s)| bits | u32::from(s == slot) << lane);
            let found = equal & lanes.taken();
            if found != 0 {
                return Some(Spot { depth, lane: found.trailing_zeros() as usize, slot });
            }
            lanes = lanes.more.as_deref()?;
            depth += 1;
        }
    }

    #[inline]
    fn add(&mut self, tag: u8, slot: Slot) {
        let mut lanes = self;
        loop {
            let free = lanes.matches(0);
            if free != 0 {
                let lane = free.trailing_zeros() as usize;
                lanes.tags[lane] = tag;
                lanes.slots[lane] = slot;
                return;
            }
            lanes = lanes.more.get_or_insert_with(|| Box::new(Lanes::empty()));
        }
    }

    /// Takes out what lies at a spot. Holes are filled from the end of the chain, so that it stays short.
    #[inline]
    fn remove(&mut self, spot: Spot) {
        let filler = if self.more.is_some() { self.pop() } else { None };
        let Some((tag, last)) = filler else {
            self.tags[spot.lane] = 0;
            return;
        };
        if last == spot.slot {
            return;
        }
        let mut lanes = self;
        for _ in 0..spot.depth {
            // It ends before `depth` only if what was popped was the spot itself, which was seen to above.
            let Some(more) = &mut lanes.more else { return };
            lanes = more;
        }
        lanes.tags[spot.lane] = tag;
        lanes.slots[spot.lane] = last;
    }

    fn is_empty(&self) -> bool {
        self.more.is_none() && self.taken() == 0
    }

    /// Takes out the last of the chain; lanes that it empties are freed.
    #[cold]
    fn pop(&mut self) -> Option<(u8, Slot)> {
        if let Some(more) = &mut self.more {
            let popped = more.pop();
            if more.is_empty() {
                self.more = None;
            }
            if popped.is_some() {
                return popped;
            }
        }
        let i = self.tags.iter().rposition(|&t| t != 0)?;
        let tag = std::mem::take(&mut self.tags[i]);
        Some((tag, self.slots[i]))
    }

    fn each(&self, mut f: impl FnMut(u8, Slot)) {
        let mut lanes = Some(self);
        while let Some(l) = lanes {
            let mut taken = l.taken();
            while taken != 0 {
                let lane = taken.trailing_zeros() as usize;
                f(l.tags[lane], l.slots[lane]);
                taken &= taken - 1;
            }
            lanes = l.more.as_deref();
        }
    }
}

/// Where a slot lies in a bucket: so many lines down its chain, and the lane there.
#[derive(Clone, Copy, Debug)]
struct Spot {
    depth: usize,
    lane: usize,
    slot: Slot,
}

#[repr(align(64))]
struct Bucket(UnsafeCell<Lanes>);

const _: () = assert!(size_of::<Bucket>() == 64);

/// A lock in a line of its own.
#[repr(align(64))]
#[derive(Default)]
struct ColumnLock(SharedLock);

/// Where an entry lies.
struct Cell<K, V>(UnsafeCell<MaybeUninit<(K, V)>>);

impl<K, V> Cell<K, V> {
    /// # Safety
    /// The cell's slot is linked, and the lock of its column is held for as long as the reference lives.
    #[inline]
    unsafe fn content(&self) -> &(K, V) {
        // SAFETY: linked content is initialised, and under the lock nobody writes it (the module's argument).
        unsafe { (*self.0.get()).assume_init_ref() }
    }
}

/// What lies in an array for a slot that was given out by [`Table::ensure_cell`].
#[inline]
fn given_out<T: Zeroable>(array: &Array<T>, slot: Slot) -> &T {
    match array.get(slot as usize) {
        Some(element) => element,
        None => unreachable!("slot {slot} was never given out"),
    }
}

/// Asks for a cache line.
#[inline]
fn prefetch<T>(line: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that reads nothing as far as the program can tell.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

// SAFETY: all-zero bytes are an empty bucket: numbers, and a null `Option<Box>`.
unsafe impl Zeroable for Bucket {}
// SAFETY: all-zero bytes are a free cell, whose content need not be initialised.
unsafe impl<K, V> Zeroable for Cell<K, V> {}
// SAFETY: all-zero bytes are the number 0.
unsafe impl Zeroable for AtomicU32 {}
// SAFETY: as above.
unsafe impl Zeroable for AtomicU64 {}

/// The table of one shard.
pub(crate) struct Table<K, V> {
    /// The buckets that it began with: columns.
    base: u32,
    locks: Box<[ColumnLock]>,
    /// The mask of the location's bits that are used in this round of linear hashing in the high half, the next bucket
    /// to split in the low half. What it says of a column changes only under that column's lock.
    state: AtomicU64,
    /// Held by whoever splits a bucket.
    splitting: Mutex<()>,
    /// Row by row, each of `base` buckets.
    buckets: Array<Bucket>,
    /// By slot.
    cells: Array<Cell<K, V>>,
    /// The location of the key that is in a slot, or was last: to find its bucket from the slot.
    locations: Array<AtomicU32>,
    /// What the entry of a slot weighs beyond 1, untouched where all weigh 1.
    weights: Array<AtomicU32>,
    weighted: bool,
    /// Beside the cells, untouched while no entry expires: the complement of when the entry of a slot does.
    expiries: Array<AtomicU64>,
    /// Whether any entry may expire: else a hit need not look.
    expires: AtomicBool,
    /// Beside the cells, a bit for each slot: whether its entry was read since the policy last heard.
    reads: Array<AtomicU64>,
    /// Beside the cells, made on first use: the complement of the end of the time to live, in a cache that has a time to
    /// idle as well.
    live_until: Array<AtomicU64>,
    has_live_until: AtomicBool,
}

// SAFETY: by the module's argument, a shared table hands out `&K` and `&V` (under a shared lock) and moves `K` and `V`
// between threads (under an exclusive one); both need both bounds.
unsafe impl<K: Send + Sync, V: Send + Sync> Sync for Table<K, V> {}
// SAFETY: as above; the table owns its entries.
unsafe impl<K: Send, V: Send> Send for Table<K, V> {}

impl<K, V> Table<K, V> {
    /// An empty table, shaped for `expected` entries when full, and `slack` more while some come in before others leave. All
    /// weigh 1, unless it is `weighted`.
    pub(crate) fn new(expected: Option<u32>, slack: usize, weighted: bool) -> Self {
        let (mut base, mut rows) = (u64::from(expected.unwrap_or(0)).div_ceil(FILL).max(1), 1);
        while base > MOST_COLUMNS {
            base = base.div_ceil(2);
            rows *= 2;
        }
        while base * rows > (SET_ASIDE / size_of::<Bucket>()) as u64 {
            rows /= 2;
        }
        let cells = expected.map_or(FEW_CELLS, |expected| {
            let cells = (expected as usize).saturating_add(slack).min(SET_ASIDE / size_of::<Cell<K, V>>().max(1));
            cells.next_multiple_of(64)
        });
        Table {
            base: base as u32,
            locks: (0..base).map(|_| ColumnLock::default()).collect(),
            state: AtomicU64::new(0),
            splitting: Mutex::new(()),
            buckets: Array::new((base * rows) as usize),
            cells: Array::new(cells),
            locations: Array::new(cells),
            weights: Array::new(if weighted { cells } else { 0 }),
            weighted,
            expiries: Array::new(cells),
            expires: AtomicBool::new(false),
            reads: Array::new(cells / 64),
            live_until: Array::new(0),
            has_live_until: AtomicBool::new(false),
        }
    }

    /// The column of a location.
    #[inline]
    fn column(&self, location: u32) -> u64 {
        (u64::from(location) * u64::from(self.base)) >> 32
    }

    /// The bucket of a location, whose column is `first`, in a state of the table.
    ///
    /// # Safety
    /// The state was read from [`Self::state`].
    #[inline]
    unsafe fn bucket_in(&self, state: u64, location: u32, first: u64) -> &Bucket {
        let (mask, split) = (state >> 32, state & u64::from(u32::MAX));
        let (base, location) = (u64::from(self.base), u64::from(location));
        let (index, round) = ((location & mask) * base + first, (mask + 1) * base);
        // A bucket that was split in this round uses one bit more, which leads to a row as far beyond as there are in it. As
        // arithmetic: a branch would be guessed wrong. And without another multiplication in the way of the first.
        let is_beyond = u64::from(index < split) & u64::from(location & (mask + 1) != 0);
        // SAFETY: the state leads to this bucket.
        unsafe { self.bucket_at(index + (round & is_beyond.wrapping_neg())) }
    }

    /// The bucket of a location, as things stand.
    #[inline]
    fn bucket_of(&self, location: u32) -> &Bucket {
        let state = self.state.load(Ordering::Acquire);
        // SAFETY: it was just read.
        unsafe { self.bucket_in(state, location, self.column(location)) }
    }

    /// # Safety
    /// The row is one that a state leads to which was read from [`Self::state`], or the one that is being split off: the
    /// bucket was made before that state was stored. `first` is a column.
    #[inline]
    unsafe fn bucket(&self, row: u64, first: u64) -> &Bucket {
        // SAFETY: the caller vouches for it.
        unsafe { self.bucket_at(row * u64::from(self.base) + first) }
    }

    /// # Safety
    /// As [`Self::bucket`].
    #[inline]
    unsafe fn bucket_at(&self, index: u64) -> &Bucket {
        // SAFETY: the caller vouches for it.
        unsafe { self.buckets.get_made(index as usize) }
    }

    /// The cell of a slot that was given out by [`Self::ensure_cell`].
    #[inline]
    fn cell(&self, slot: Slot) -> &Cell<K, V> {
        given_out(&self.cells, slot)
    }

    /// The location of the key that is in a slot, or was last.
    #[inline]
    pub(crate) fn location(&self, slot: Slot) -> u32 {
        given_out(&self.locations, slot).load(Ordering::Acquire)
    }

    /// Says where the entry of a slot will be linked, or is.
    #[inline]
    pub(crate) fn set_location(&self, slot: Slot, location: u32) {
        given_out(&self.locations, slot).store(location, Ordering::Release);
    }

    /// What the entry of a slot weighs.
    #[inline]
    pub(crate) fn weight(&self, slot: Slot) -> u32 {
        if self.weighted { given_out(&self.weights, slot).load(Ordering::Relaxed).wrapping_add(1) } else { 1 }
    }

    #[inline]
    pub(crate) fn set_weight(&self, slot: Slot, weight: u32) {
        if self.weighted {
            given_out(&self.weights, slot).store(weight.wrapping_sub(1), Ordering::Relaxed);
        }
    }

    /// Whether any entry may expire. Asked after an entry was found, it knows of what that was put in with.
    #[inline]
    pub(crate) fn expires(&self) -> bool {
        self.expires.load(Ordering::Relaxed)
    }

    /// When the entry of a slot expires, in milliseconds; [`NEVER`] if it does not. It was linked, or its note was found.
    #[inline]
    pub(crate) fn expires_at(&self, slot: Slot) -> u64 {
        if !self.expires() {
            return NEVER;
        }
        self.expiries.get(slot as usize).map_or(NEVER, |end| !end.load(Ordering::Relaxed))
    }

    /// Sets when the entry of a slot expires: before it is linked, or under the lock of its column.
    #[inline]
    pub(crate) fn set_expires_at(&self, slot: Slot, at: u64) {
        if at != NEVER && !self.expires() {
            self.expires.store(true, Ordering::Relaxed);
        }
        // Whoever gave the slot back had seen that entries expire, if its last one did; so has the lock's next holder.
        if self.expires() {
            self.expiries.ensure(slot as usize);
            if let Some(end) = self.expiries.get(slot as usize) {
                end.store(!at, Ordering::Relaxed);
            }
        }
    }

    /// The cell of a slot that is in a bucket.
    ///
    /// # Safety
    /// The slot was found in a bucket whose column's lock is held: it was linked there under that lock, after
    /// [`Self::ensure_cell`] had made it.
    #[inline]
    unsafe fn linked(&self, slot: Slot) -> &Cell<K, V> {
        // SAFETY: it was made, as the caller vouches for.
        unsafe { self.cells.get_made(slot as usize) }
    }

    /// Makes sure that a slot has a cell. Slots are given out from 0 upward.
    #[inline]
    pub(crate) fn ensure_cell(&self, slot: Slot) {
        self.cells.ensure(slot as usize);
        self.locations.ensure(slot as usize);
        if self.weighted {
            self.weights.ensure(slot as usize);
        }
        self.reads.ensure(slot as usize / 64);
    }

    /// Asks for the memory of a slot's cell, and of what lies beside it.
    #[inline]
    pub(crate) fn prefetch_cell(&self, slot: Slot) {
        prefetch(given_out(&self.locations, slot));
        prefetch(self.cell(slot));
    }

    /// Asks for the memory of the bucket that a slot's entry is in.
    #[inline]
    pub(crate) fn prefetch_bucket(&self, slot: Slot) {
        prefetch(self.bucket_of(self.location(slot)));
    }

    /// Notes that a slot's entry was read. Once that is noted, a further read writes nothing. Whether it was not yet.
    #[inline]
    pub(crate) fn mark_read(&self, slot: Slot) -> bool {
        let (word, bit) = self.read_mark(slot);
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// As [`Self::mark_read`], without a locked instruction: where threads note reads of one word's entries in the same
    /// nanosecond, or marks are taken meanwhile, one may be lost, or be there once more. For a hint that is well.
    #[inline]
    pub(crate) fn hint_read(&self, slot: Slot) {
        let (word, bit) = self.read_mark(slot);
        let marks = word.load(Ordering::Relaxed);
        if marks & bit == 0 {
            word.store(marks | bit, Ordering::Relaxed);
        }
    }

    /// Whether a slot's entry was read since it was last asked.
    #[inline]
    pub(crate) fn take_read(&self, slot: Slot) -> bool {
        let (word, bit) = self.read_mark(slot);
        word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }

    #[inline]
    fn read_mark(&self, slot: Slot) -> (&AtomicU64, u64) {
        match self.reads.get(slot as usize / 64) {
            Some(word) => (word, 1 << (slot % 64)),
            None => unreachable!("slot {slot} was never given out"),
        }
    }

    /// Appends the slots that are marked as read, of `words` times 64 from `hand` on, in a circle of `slots`, and takes their
    /// marks; moves `hand` on. Without a locked instruction: a mark that comes meanwhile may be lost, as by
    /// [`Self::hint_read`].
    pub(crate) fn sweep_reads(&self, hand: &mut Slot, slots: Slot, words: u32, read: &mut Vec<Slot>) {
        let mut left = words.min(slots.div_ceil(64)) as usize;
        while left > 0 {
            if *hand >= slots {
                *hand = 0;
            }
            // Segments are whole words, and so is the circle but for its end.
            let ahead = left.min((slots - *hand).div_ceil(64) as usize).min(64);
            let run = self.reads.run(*hand as usize / 64);
            let run = &run[..ahead.min(run.len())];
            if run.is_empty() {
                unreachable!("slot {hand} was never given out");
            }
            // The first of each word is noted and, unless there was one, noted over: which words have any is nothing that a
            // processor could foresee.
            let (mut found, mut count) = ([0; 64], 0);
            for word in run {
                let marks = word.load(Ordering::Relaxed);
                word.store(0, Ordering::Relaxed);
                found[count % 64] = *hand + marks.trailing_zeros();
                count += usize::from(marks != 0);
                let mut more = marks & marks.wrapping_sub(1);
                if more != 0 {
                    read.extend_from_slice(&found[..count]);
                    count = 0;
                    while more != 0 {
                        read.push(*hand + more.trailing_zeros());
                        more &= more - 1;
                    }
                }
                *hand += 64;
            }
            read.extend_from_slice(&found[..count]);
            left -= run.len();
        }
    }

    /// The end of the time to live of a slot's entry, kept only where [`Self::set_live_until`] was called.
    #[inline]
    pub(crate) fn live_until(&self, slot: Slot) -> u64 {
        if !self.has_live_until.load(Ordering::Acquire) {
            return NEVER;
        }
        let end = self.live_until.get(slot as usize);
        end.map_or(NEVER, |end| !end.load(Ordering::Relaxed))
    }

    /// Sets the end of the time to live of a slot's entry.
    pub(crate) fn set_live_until(&self, slot: Slot, at: u64) {
        self.live_until.ensure(slot as usize);
        if let Some(end) = self.live_until.get(slot as usize) {
            end.store(!at, Ordering::Relaxed);
        }
        self.has_live_until.store(true, Ordering::Release);
    }

    /// Takes the lock of a location's column by `lock`, and gives its bucket.
    #[inline(always)]
    fn bucket_under<'t, G>(&'t self, location: u32, lock: impl FnOnce(&'t SharedLock) -> G) -> (G, &'t Bucket) {
        // The locked instruction below holds up every access after it, but not a prefetch before it: the bucket is
        // fetched while the processor is still busy with what came before.
        let state = self.state.load(Ordering::Acquire);
        let column = self.column(location);
        // SAFETY: the state was just read.
        let mut bucket = unsafe { self.bucket_in(state, location, column) };
        prefetch(bucket);
        let guard = lock(&self.locks[column as usize].0);
        let now = self.state.load(Ordering::Acquire);
        if now != state {
            bucket = self.bucket_of(location);
        }
        (guard, bucket)
    }

    /// Calls `f` on the entry of a key, under the lock of its column: a shared one, unless that `is_brief`.
    #[inline(always)]
    pub(crate) fn read<R>(
        &self,
        hash: Hash,
        is_brief: bool,
        matches: impl Fn(&K) -> bool,
        f: impl FnOnce(Slot, &K, &V) -> R,
    ) -> Option<R> {
        let (guard, bucket) = self.bucket_under(hash.location(), |lock| lock.look(is_brief));
        // SAFETY: the lock of its column is held, at least shared, until `f` has returned.
        let lanes = unsafe { &*bucket.0.get() };
        let (spot, cell) = lanes.find(hash.tag(), |slot| {
            // SAFETY: `slot` is linked in this bucket, whose column's lock is held, at least shared.
            let (cell, (key, _)) = unsafe {
                let cell = self.linked(slot);
                (cell, cell.content())
            };
            matches(key).then_some(cell)
        })?;
        // SAFETY: as above.
        let (key, value) = unsafe { cell.content() };
        let result = f(spot.slot, key, value);
        drop(guard);
        Some(result)
    }

    /// Locks the column of a hash exclusively.
    #[inline]
    pub(crate) fn lock(&self, hash: Hash) -> Locked<'_, K, V> {
        self.lock_location(hash.location())
    }

    #[inline(always)]
    fn lock_location(&self, location: u32) -> Locked<'_, K, V> {
        let (guard, bucket) = self.bucket_under(location, SharedLock::alone);
        Locked { table: self, bucket, _guard: guard }
    }

    /// Locks the bucket that a slot's entry is in. The answer is `None` if the slot is free, now that the lock is held.
    #[inline]
    pub(crate) fn lock_slot(&self, slot: Slot) -> Option<Occupied<'_, K, V>> {
        loop {
            let at = self.location(slot);
            let locked = self.lock_location(at);
            if let Some(spot) = locked.lanes().find_slot(slot) {
                return Some(Occupied { locked, spot });
            }
            // Not in the bucket that it names: free, unless the slot was given to another key in between.
            if self.location(slot) == at {
                return None;
            }
        }
    }

    /// Splits a bucket if the table is too full for `entries`; at most one for each call. Skips it if another thread
    /// is at it.
    #[inline]
    pub(crate) fn grow(&self, entries: u64) {
        let state = self.state.load(Ordering::Relaxed);
        let split = u64::from(state as u32);
        let buckets = u64::from(self.base) * ((state >> 32) + 1) + split;
        if entries > buckets * FILL {
            self.split();
        }
    }

    #[cold]
    fn split(&self) {
        let Some(_splitting) = self.splitting.try_lock() else { return };
        let state = self.state.load(Ordering::Acquire);
        let (mask, split) = (state >> 32, u64::from(state as u32));
        let (base, rows) = (u64::from(self.base), mask + 1);
        let (row, first) = (split / base, split % base);
        // The whole of the next round must be counted.
        if base * 2 * rows > u64::from(u32::MAX) {
            return;
        }
        self.buckets.ensure(((row + rows) * base + first) as usize);
        let _column = self.locks[first as usize].0.alone();
        // SAFETY: both buckets are of this column, whose lock is held exclusively; they are two, the one of a row that is
        // in use, the other was made above.
        let (from, to) =
            unsafe { (&mut *self.bucket(row, first).0.get(), &mut *self.bucket(row + rows, first).0.get()) };
        let mut moved = Vec::new();
        from.each(|tag, slot| {
            if u64::from(self.location(slot)) & rows != 0 {
                moved.push((tag, slot));
            }
        });
        for (tag, slot) in moved {
            if let Some(spot) = from.find_slot(slot) {
                from.remove(spot);
            }
            to.add(tag, slot);
        }
        let next = if split + 1 == rows * base { (2 * mask + 1) << 32 } else { state + 1 };
        self.state.store(next, Ordering::Release);
    }

    /// Drops every entry. For `Drop` and tests; a table in use is emptied by unlinking.
    fn clear(&mut self) {
        let state = self.state.load(Ordering::Acquire);
        let in_use = u64::from(self.base) * ((state >> 32) + 1) + u64::from(state as u32);
        let Table { buckets, cells, .. } = self;
        for bucket in 0..in_use as usize {
            let Some(bucket) = buckets.get_mut(bucket) else { continue };
            let lanes = std::mem::replace(bucket.0.get_mut(), Lanes::empty());
            lanes.each(|_, slot| {
                if let Some(cell) = cells.get(slot as usize) {
                    // SAFETY: the slot was linked, so its content is initialised; `&mut self` means that nobody else is
                    // here, and the lanes that named it are gone.
                    unsafe { (*cell.0.get()).assume_init_drop() };
                }
            });
        }
    }
}

impl<K, V> Drop for Table<K, V> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The bucket of a location, with its column locked exclusively.
pub(crate) struct Locked<'t, K, V> {
    table: &'t Table<K, V>,
    bucket: &'t Bucket,
    _guard: Alone<'t>,
}

impl<'t, K, V> Locked<'t, K, V> {
    fn lanes(&self) -> &Lanes {
        // SAFETY: the lock of its column is held exclusively, and through `&self` nobody writes.
        unsafe { &*self.bucket.0.get() }
    }

    fn lanes_mut(&mut self) -> &mut Lanes {
        // SAFETY: the lock of its column is held exclusively, and `&mut self` is the only way to it.
        unsafe { &mut *self.bucket.0.get() }
    }

    /// Looks for a key; gives the lock back where it is not there.
    #[inline(always)]
    pub(crate) fn find(self, hash: Hash, matches: impl Fn(&K) -> bool) -> Result<Occupied<'t, K, V>, Self> {
        let found = self.lanes().find(hash.tag(), |slot| {
            // SAFETY: `slot` is linked in this bucket, whose column's lock is held.
            let (key, _) = unsafe { self.table.linked(slot).content() };
            matches(key).then_some(())
        });
        match found {
            Some((spot, ())) => Ok(Occupied { locked: self, spot }),
            None => Err(self),
        }
    }

    /// Puts an entry into a free slot and links it here.
    ///
    /// # Safety
    /// The caller owns the slot (see the module's argument), and `hash` is that by which this bucket was locked.
    #[inline]
    pub(crate) unsafe fn link(&mut self, hash: Hash, slot: Slot, key: K, value: V) {
        self.table.set_location(slot, hash.location());
        // SAFETY: an owned slot is in no bucket, so nobody else reaches its content, which is uninitialised.
        unsafe { (*self.table.cell(slot).0.get()).write((key, value)) };
        self.lanes_mut().add(hash.tag(), slot);
    }
}

/// An entry, under the exclusive lock of its column: as long as this lives, its slot is linked.
pub(crate) struct Occupied<'t, K, V> {
    locked: Locked<'t, K, V>,
    spot: Spot,
}

impl<'t, K, V> Occupied<'t, K, V> {
    #[inline]
    pub(crate) fn slot(&self) -> Slot {
        self.spot.slot
    }

    #[inline]
    fn cell(&self) -> &'t Cell<K, V> {
        // SAFETY: the slot is linked in a bucket whose lock is held.
        unsafe { self.locked.table.linked(self.spot.slot) }
    }

    /// What it weighs.
    #[inline]
    pub(crate) fn weight(&self) -> u32 {
        self.locked.table.weight(self.spot.slot)
    }

    /// When it expires, in milliseconds; [`NEVER`] if it does not.
    #[inline]
    pub(crate) fn expires_at(&self) -> u64 {
        self.locked.table.expires_at(self.spot.slot)
    }

    #[inline]
    pub(crate) fn entry(&self) -> (&K, &V) {
        // SAFETY: linked, and the lock is held for as long as `self` is borrowed.
        let (key, value) = unsafe { self.cell().content() };
        (key, value)
    }

    /// Replaces the value.
    #[inline]
    pub(crate) fn replace(&mut self, value: V) -> V {
        // SAFETY: linked, and the lock is held exclusively; `&mut self` is the only way to it.
        let entry = unsafe { (*self.cell().0.get()).assume_init_mut() };
        std::mem::replace(&mut entry.1, value)
    }

    /// Takes the entry out. The caller owns the slot then; the lock goes on for as long as the rest of the answer.
    #[inline(always)]
    pub(crate) fn unlink(self) -> ((K, V), Locked<'t, K, V>) {
        let cell = self.cell();
        let Occupied { mut locked, spot } = self;
        locked.lanes_mut().remove(spot);
        // SAFETY: it was linked here until just now, so it is initialised, and nobody else reaches it any more.
        let entry = unsafe { (*cell.0.get()).assume_init_read() };
        (entry, locked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bucket_is_all_zero() {
        let bucket = std::mem::ManuallyDrop::new(Lanes::empty());
        // SAFETY: lanes have no padding: 8, 44 and 12 bytes.
        let bytes: [u8; 64] = unsafe { std::mem::transmute_copy(&*bucket) };
        assert_eq!(bytes, [0; 64]);
    }

    fn hash(key: u64) -> Hash {
        let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Hash(z ^ (z >> 31))
    }

    fn insert(table: &Table<u64, String>, slot: Slot, key: u64) {
        table.ensure_cell(slot);
        let Err(mut locked) = table.lock(hash(key)).find(hash(key), |k| *k == key) else { panic!("{key} is there") };
        // SAFETY: each test gives a slot out once.
        unsafe { locked.link(hash(key), slot, key, key.to_string()) };
        drop(locked);
        table.grow(u64::from(slot) + 1);
    }

    #[cfg(not(shuttle))]
    #[test]
    fn finds_what_was_put_in_while_it_grows() {
        for expected in [None, Some(1), Some(100), Some(1000)] {
            let table = Table::new(expected, 16, false);
            let n = if cfg!(miri) { 200 } else { 5_000 };
            for key in 0..n {
                insert(&table, key as Slot, key);
                assert!(table.read(hash(key), key % 2 == 0, |k| *k == key, |slot, _, v| (slot, v.clone())).is_some());
            }
            for key in 0..n {
                let found = table.read(hash(key), key % 2 == 0, |k| *k == key, |slot, _, v| (slot, v.clone()));
                assert_eq!(found, Some((key as Slot, key.to_string())));
            }
            for key in n..n + 100 {
                assert!(table.read(hash(key), key % 2 == 0, |k| *k == key, |_, _, _| ()).is_none());
            }
            // Buckets stay evenly full: linear hashing that split the wrong ones would chain.
            let state = table.state.load(Ordering::Relaxed);
            assert!((u64::from(table.base) * ((state >> 32) + 1) + u64::from(state as u32)) * FILL >= n);
        }
    }

    #[cfg(not(shuttle))]
    #[test]
    fn unlinks_by_slot_and_drops_the_rest() {
        let table = Table::new(None, 16, false);
        for key in 0..150 {
            insert(&table, key as Slot, key);
        }
        for slot in (0..150).step_by(2) {
            let (entry, locked) = table.lock_slot(slot).expect("it is linked").unlink();
            assert_eq!(entry, (u64::from(slot), slot.to_string()));
            drop(locked);
            assert!(table.lock_slot(slot).is_none());
        }
        for key in 0..150 {
            let found = table.read(hash(key), key % 2 == 0, |k| *k == key, |_, _, _| ()).is_some();
            assert_eq!(found, key % 2 == 1);
        }
    }

    /// Each mark is taken once, whatever lies beside it and however much is looked at at a time, and no other.
    #[cfg(not(shuttle))]
    #[test]
    fn a_sweep_takes_what_is_marked() {
        let most = if cfg!(miri) { 300 } else { 9_000 };
        // The marks of one segment, and of many.
        for (expected, slots) in [(Some(most), most), (None, most), (Some(100), most - 63), (None, 64), (None, 1)] {
            let table = Table::<u64, u64>::new(expected, 16, false);
            (0..slots).for_each(|slot| table.ensure_cell(slot));
            let mut hand = 0;
            for (words, one_in) in [(1, 1), (3, 2), (64, 50), (100, 7), (u32::MAX, 1_000)] {
                let is_marked = |slot: &Slot| hash(u64::from(*slot)).0.is_multiple_of(one_in);
                let marked: Vec<Slot> = (0..slots).filter(is_marked).collect();
                marked.iter().for_each(|&slot| table.hint_read(slot));
                let mut read = Vec::new();
                // Once round, wherever it begins; the last look may go on a little.
                for _ in 0..slots.div_ceil(64).div_ceil(words) {
                    let before = read.len();
                    table.sweep_reads(&mut hand, slots, words, &mut read);
                    assert!(read.len() - before <= words.saturating_mul(64) as usize);
                }
                read.sort_unstable();
                assert_eq!(read, marked, "{slots} slots, one in {one_in}, {words} words at a time");
                assert!((0..slots).all(|slot| !table.take_read(slot)));
            }
        }
    }

    #[test]
    fn keys_of_one_bucket_chain_and_unchain() {
        let mut lanes = Lanes::empty();
        for slot in 0..40 {
            lanes.add(7, slot);
        }
        for slot in (0..40).rev().step_by(3).chain((0..40).filter(|s| s % 3 != 0)) {
            let spot = lanes.find_slot(slot).expect("it is there");
            lanes.remove(spot);
            assert!(lanes.find_slot(slot).is_none());
        }
        assert!(lanes.is_empty());
    }
}
