//! The table of a shard: from keys to entries, with a lock in each bucket.
//!
//! # Shape
//!
//! A *bucket* is one cache line: eleven tags of 8 bits, eleven slots, and a pointer to more lanes in the rare case that
//! twelve keys meet. A *cell* is where an entry lies: its key, its value and 16 bytes about it. A slot names a cell for as
//! long as the entry lives, whatever the table does, so a policy can use it as an index. A hit reads two cache lines
//! that are not at hand anyway, the bucket's and the cell's, and writes neither: the locks, and a bit for each slot that
//! says "read since the policy last heard", lie in small arrays that stay in the caches of the processor. (Two things
//! were tried and cost half the speed: the lock in the bucket's own line, and a counter in the cell. The next locked
//! instruction waits until a line that was written has come from memory, and so hits no longer overlap.)
//!
//! The table grows by *linear hashing* (Litwin, VLDB 80): when it is too full, one bucket is split in two. No operation
//! ever waits for a rehash, and nothing moves but slot numbers. Buckets and cells live in segments that double, so
//! their addresses never change. The number of buckets in the first segment is chosen so that a full cache of known
//! size ends at the end of a round, where all buckets are equally full.
//!
//! The buckets that descend from one bucket of the first segment are a *column*, and a key never leaves its column. A
//! column has one lock. So whoever holds it sees the column's buckets stand still, though the table grows elsewhere.
//!
//! # Why the `unsafe` is sound
//!
//! The lanes of a bucket are read under the shared lock of its column and written under the exclusive one.
//! The content of a cell (`Cell::entry`) is reached only in these ways:
//!
//! 1. *Linked*: its slot is in exactly one bucket, that of its key. Whoever reads it holds that column's lock shared,
//!    whoever replaces, moves or takes it holds it exclusively.
//! 2. *Owned*: a slot that is in no bucket belongs to whoever was given it: by unlinking, or from the list of free
//!    slots, which gives each out once. Its content is uninitialised: `unlink` moves it out, and only `link`, which
//!    takes the slot, writes it.
//!
//! So initialised means linked, and a reference to the content never outlives the guard through which it was got.
//! Everything else in a cell is atomic. `link` is `unsafe` because only the caller knows that it owns the slot.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

use crate::eviction::{NEVER, Slot};
use crate::segment::{Segment, Zeroable};
use crate::sync::{AtomicU32, AtomicU64, Mutex, OnceLock, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Keys per bucket line.
const LANES: usize = 11;
/// How full buckets are on average before one is split: about 11 % of them then have more keys than lanes, and 3 % of
/// the keys lie beyond.
const FILL: u64 = 8;
/// Locks of a table, at most. A shard has a few threads at a time.
const MOST_COLUMNS: u64 = 128;
/// Cells in the first segment.
const FIRST_CELLS: u32 = 64;

/// Which parts of a key's 64-bit hash are used where: the low half finds the bucket, the next 8 bits are the tag, and
/// the highest 16 choose the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hash(pub(crate) u64);

impl Hash {
    pub(crate) fn location(self) -> u32 {
        self.0 as u32
    }

    /// Never 0, which marks an empty lane.
    fn tag(self) -> u8 {
        ((self.0 >> 32) as u8).max(1)
    }
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

    /// A bit for each lane with this tag, at 8 times its number.
    #[inline]
    fn matches(&self, tag: u8) -> u128 {
        const LOW: u128 = u128::from_le_bytes([0x7f; 16]);
        let mut bytes = [0; 16];
        bytes[..LANES + 1].copy_from_slice(&self.tags);
        let differ = u128::from_le_bytes(bytes) ^ u128::from_le_bytes([tag; 16]);
        // The high bit of each byte that is 0; exact, so never that of an empty lane.
        !(((differ & LOW) + LOW) | differ | LOW) >> 7
    }

    /// The slots whose tag is `tag`, until `found` says yes to one.
    #[inline]
    fn find(&self, tag: u8, mut found: impl FnMut(Slot) -> bool) -> Option<Slot> {
        let mut lanes = self;
        loop {
            let mut matches = lanes.matches(tag);
            while matches != 0 {
                let slot = lanes.slots[matches.trailing_zeros() as usize / 8];
                if found(slot) {
                    return Some(slot);
                }
                matches &= matches - 1;
            }
            lanes = lanes.more.as_deref()?;
        }
    }

    fn add(&mut self, tag: u8, slot: Slot) {
        let mut lanes = self;
        loop {
            if let Some(i) = lanes.tags[..LANES].iter().position(|&t| t == 0) {
                lanes.tags[i] = tag;
                lanes.slots[i] = slot;
                return;
            }
            lanes = lanes.more.get_or_insert_with(|| Box::new(Lanes::empty()));
        }
    }

    /// Takes a slot out; the last lanes of a chain are freed when they empty.
    fn remove(&mut self, slot: Slot) -> bool {
        for i in 0..LANES {
            if self.tags[i] != 0 && self.slots[i] == slot {
                self.tags[i] = 0;
                // Fill the hole from the chain, so that the chain stays short.
                if let Some(more) = &mut self.more {
                    if let Some((tag, last)) = more.pop() {
                        self.tags[i] = tag;
                        self.slots[i] = last;
                    }
                    if more.is_empty() {
                        self.more = None;
                    }
                }
                return true;
            }
        }
        let Some(more) = &mut self.more else { return false };
        let removed = more.remove(slot);
        if more.is_empty() {
            self.more = None;
        }
        removed
    }

    fn is_empty(&self) -> bool {
        self.more.is_none() && self.tags == [0; LANES + 1]
    }

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
            for i in 0..LANES {
                if l.tags[i] != 0 {
                    f(l.tags[i], l.slots[i]);
                }
            }
            lanes = l.more.as_deref();
        }
    }
}

#[repr(align(64))]
struct Bucket(UnsafeCell<Lanes>);

const _: () = assert!(size_of::<Bucket>() == 64);

/// A lock in a line of its own.
#[repr(align(64))]
struct ColumnLock(RwLock<()>);

/// Where an entry lies. All but `entry` is atomic, and may be read and written by anyone.
pub(crate) struct Cell<K, V> {
    /// When the entry expires, in milliseconds; [`NEVER`] if it does not.
    pub(crate) expires_at: AtomicU64,
    /// The location of the key, to find its bucket from the slot.
    location: AtomicU32,
    /// What the entry weighs.
    pub(crate) weight: AtomicU32,
    entry: UnsafeCell<MaybeUninit<(K, V)>>,
}

impl<K, V> Cell<K, V> {
    /// The location of the key that is here, or was last.
    pub(crate) fn location(&self) -> u32 {
        self.location.load(Ordering::Acquire)
    }

    /// Says where the entry of a slot will be linked, or is.
    pub(crate) fn set_location(&self, location: u32) {
        self.location.store(location, Ordering::Release);
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

/// A location and a round of linear hashing give a bucket.
#[derive(Clone, Copy)]
struct Place {
    segment: usize,
    offset: usize,
}

// SAFETY: all-zero bytes are an empty bucket: numbers, and a null `Option<Box>`.
unsafe impl Zeroable for Bucket {}
// SAFETY: all-zero bytes are a free cell: atomics of 0, and content that need not be initialised.
unsafe impl<K, V> Zeroable for Cell<K, V> {}
// SAFETY: all-zero bytes are the number 0.
unsafe impl Zeroable for AtomicU64 {}

/// The table of one shard.
pub(crate) struct Table<K, V> {
    /// Buckets in the first segment: columns.
    base: u32,
    locks: Box<[ColumnLock]>,
    /// The round of linear hashing in the high half, the next bucket to split in the low half. What it says of a column
    /// changes only under that column's lock.
    state: AtomicU64,
    /// Held by whoever splits a bucket.
    splitting: Mutex<()>,
    /// Segment 0 has `base` buckets, segment `i` has `base << (i - 1)`.
    buckets: [OnceLock<Segment<Bucket>>; 28],
    /// Segment `i` has `FIRST_CELLS << i` cells.
    cells: [OnceLock<Segment<Cell<K, V>>>; 27],
    /// Beside the cells, a bit for each slot: whether its entry was read since the policy last heard.
    reads: [OnceLock<Segment<AtomicU64>>; 27],
    /// Beside the cells, made on first use: the end of the time to live, in a cache that has a time to idle as well.
    live_until: [OnceLock<Box<[AtomicU64]>>; 27],
}

// SAFETY: by the module's argument, a shared table hands out `&K` and `&V` (under a shared lock) and moves `K` and `V`
// between threads (under an exclusive one); both need both bounds.
unsafe impl<K: Send + Sync, V: Send + Sync> Sync for Table<K, V> {}
// SAFETY: as above; the table owns its entries.
unsafe impl<K: Send, V: Send> Send for Table<K, V> {}

impl<K, V> Table<K, V> {
    /// An empty table, shaped for `expected` entries when full.
    pub(crate) fn new(expected: Option<u32>) -> Self {
        let mut base = u64::from(expected.unwrap_or(0)).div_ceil(FILL).max(1);
        while base > MOST_COLUMNS {
            base = base.div_ceil(2);
        }
        let table = Table {
            base: base as u32,
            locks: (0..base).map(|_| ColumnLock(RwLock::new(()))).collect(),
            state: AtomicU64::new(0),
            splitting: Mutex::new(()),
            buckets: [const { OnceLock::new() }; 28],
            cells: [const { OnceLock::new() }; 27],
            reads: [const { OnceLock::new() }; 27],
            live_until: [const { OnceLock::new() }; 27],
        };
        table.bucket_segment(0);
        table
    }

    fn bucket_segment(&self, segment: usize) -> &[Bucket] {
        self.buckets[segment].get_or_init(|| {
            let len = match segment {
                0 => self.base as usize,
                s => (self.base as usize) << (s - 1),
            };
            Segment::new(len)
        })
    }

    /// The column of a location.
    #[inline]
    fn column(&self, location: u32) -> u64 {
        (u64::from(location) * u64::from(self.base)) >> 32
    }

    /// The bucket of a location in a state of the table.
    #[inline]
    fn bucket_in(&self, state: u64, location: u32) -> &Bucket {
        let (round, split) = ((state >> 32) as u32, state as u32);
        let base = u64::from(self.base);
        let first = self.column(location);
        let mut row = u64::from(location) & ((1u64 << round) - 1);
        if row * base + first < u64::from(split) {
            row = u64::from(location) & ((1u64 << (round + 1)) - 1);
        }
        self.bucket(Self::place_of(row, first, base))
    }

    /// The bucket of a location. The lock of its column is held.
    #[inline]
    fn bucket_of(&self, location: u32) -> &Bucket {
        self.bucket_in(self.state.load(Ordering::Acquire), location)
    }

    #[inline]
    fn place_of(row: u64, first: u64, base: u64) -> Place {
        if row == 0 {
            return Place { segment: 0, offset: first as usize };
        }
        let high = 63 - row.leading_zeros();
        Place { segment: high as usize + 1, offset: ((row - (1 << high)) * base + first) as usize }
    }

    #[inline]
    fn bucket(&self, place: Place) -> &Bucket {
        // Initialised: a state that leads here was stored after the segment was made.
        &self.bucket_segment(place.segment)[place.offset]
    }

    /// The cell of a slot that was given out by [`Self::ensure_cell`].
    #[inline]
    pub(crate) fn cell(&self, slot: Slot) -> &Cell<K, V> {
        let (segment, offset) = Self::cell_place(slot);
        match self.cells[segment].get() {
            Some(cells) => &cells[offset],
            None => unreachable!("slot {slot} was never given out"),
        }
    }

    #[inline]
    fn cell_place(slot: Slot) -> (usize, usize) {
        let at = u64::from(slot) + u64::from(FIRST_CELLS);
        let high = 63 - at.leading_zeros();
        ((high - FIRST_CELLS.trailing_zeros()) as usize, (at - (1 << high)) as usize)
    }

    /// Makes sure that a slot has a cell. Slots are given out from 0 upward.
    pub(crate) fn ensure_cell(&self, slot: Slot) {
        let (segment, _) = Self::cell_place(slot);
        let len = (FIRST_CELLS as usize) << segment;
        self.cells[segment].get_or_init(|| Segment::new(len));
        self.reads[segment].get_or_init(|| Segment::new(len / 64));
    }

    /// Notes that a slot's entry was read. Once that is noted, a further read writes nothing.
    #[inline]
    pub(crate) fn mark_read(&self, slot: Slot) {
        let (word, bit) = self.read_mark(slot);
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether a slot's entry was read since it was last asked.
    pub(crate) fn take_read(&self, slot: Slot) -> bool {
        let (word, bit) = self.read_mark(slot);
        word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }

    #[inline]
    fn read_mark(&self, slot: Slot) -> (&AtomicU64, u64) {
        let (segment, offset) = Self::cell_place(slot);
        match self.reads[segment].get() {
            Some(words) => (&words[offset / 64], 1 << (offset % 64)),
            None => unreachable!("slot {slot} was never given out"),
        }
    }

    /// Takes the marks of `words` times 64 slots from `hand` on, in a circle of `slots`, which moves `hand` on.
    pub(crate) fn sweep_reads(&self, hand: &mut Slot, slots: Slot, words: u32, mut read: impl FnMut(Slot)) {
        for _ in 0..words.min(slots.div_ceil(64)) {
            if *hand >= slots {
                *hand = 0;
            }
            // Segments are whole words, and so is the circle but for its end.
            let (word, _) = self.read_mark(*hand);
            if word.load(Ordering::Relaxed) != 0 {
                let mut marks = word.swap(0, Ordering::Relaxed);
                while marks != 0 {
                    read(*hand + marks.trailing_zeros());
                    marks &= marks - 1;
                }
            }
            *hand += 64;
        }
    }

    /// The end of the time to live of a slot's entry, kept only where [`Self::set_live_until`] was called.
    pub(crate) fn live_until(&self, slot: Slot) -> u64 {
        let (segment, offset) = Self::cell_place(slot);
        self.live_until[segment].get().map_or(NEVER, |column| column[offset].load(Ordering::Relaxed))
    }

    /// Sets the end of the time to live of a slot's entry.
    pub(crate) fn set_live_until(&self, slot: Slot, at: u64) {
        let (segment, offset) = Self::cell_place(slot);
        let make = || (0..(FIRST_CELLS as usize) << segment).map(|_| AtomicU64::new(NEVER)).collect();
        self.live_until[segment].get_or_init(make)[offset].store(at, Ordering::Relaxed);
    }

    #[inline]
    fn share(&self, location: u32) -> (RwLockReadGuard<'_, ()>, &Lanes) {
        // The locked instruction below holds up every access after it, but not a prefetch before it: the bucket is
        // fetched while the processor is still busy with what came before.
        let state = self.state.load(Ordering::Acquire);
        let mut bucket = self.bucket_in(state, location);
        prefetch(bucket);
        let guard = self.locks[self.column(location) as usize].0.read();
        let now = self.state.load(Ordering::Acquire);
        if now != state {
            bucket = self.bucket_in(now, location);
        }
        // SAFETY: the lock of its column is held shared for as long as the guard, which goes with the reference.
        let lanes = unsafe { &*bucket.0.get() };
        (guard, lanes)
    }

    /// Calls `f` on the entry of a key, under the shared lock of its column.
    #[inline]
    pub(crate) fn read<R>(
        &self,
        hash: Hash,
        matches: impl Fn(&K) -> bool,
        f: impl FnOnce(Slot, &Cell<K, V>, &K, &V) -> R,
    ) -> Option<R> {
        let (guard, lanes) = self.share(hash.location());
        let slot = lanes.find(hash.tag(), |slot| {
            // SAFETY: `slot` is linked in this bucket, whose column's lock is held shared.
            let (key, _) = unsafe { self.content(slot) };
            matches(key)
        })?;
        let cell = self.cell(slot);
        // SAFETY: as above; the lock is held until `f` has returned.
        let (key, value) = unsafe { self.content(slot) };
        let result = f(slot, cell, key, value);
        drop(guard);
        Some(result)
    }

    /// # Safety
    /// The slot is linked, and the lock of its column is held for as long as the reference lives.
    #[inline]
    unsafe fn content(&self, slot: Slot) -> &(K, V) {
        // SAFETY: linked content is initialised, and under the lock nobody writes it (the module's argument).
        unsafe { (*self.cell(slot).entry.get()).assume_init_ref() }
    }

    /// Locks the column of a hash exclusively.
    #[inline]
    pub(crate) fn lock(&self, hash: Hash) -> Locked<'_, K, V> {
        self.lock_location(hash.location())
    }

    #[inline]
    fn lock_location(&self, location: u32) -> Locked<'_, K, V> {
        let guard = self.locks[self.column(location) as usize].0.write();
        Locked { table: self, bucket: self.bucket_of(location), _guard: guard }
    }

    /// Locks the bucket that a slot's entry is in. The answer is `None` if the slot is free, now that the lock is held.
    pub(crate) fn lock_slot(&self, slot: Slot) -> Option<Locked<'_, K, V>> {
        let location = &self.cell(slot).location;
        loop {
            let at = location.load(Ordering::Acquire);
            let locked = self.lock_location(at);
            if locked.holds(slot) {
                return Some(locked);
            }
            // Not in the bucket that its cell names: free, unless the cell was reused for another key in between.
            if location.load(Ordering::Acquire) == at {
                return None;
            }
        }
    }

    /// Splits a bucket if the table is too full for `entries`; at most one for each call. Skips it if another thread
    /// is at it.
    pub(crate) fn grow(&self, entries: u64) {
        let state = self.state.load(Ordering::Relaxed);
        let buckets = (u64::from(self.base) << (state >> 32)) + u64::from(state as u32);
        if entries <= buckets * FILL {
            return;
        }
        let Some(_splitting) = self.splitting.try_lock() else { return };
        let state = self.state.load(Ordering::Acquire);
        let (round, split) = (state >> 32, u64::from(state as u32));
        let base = u64::from(self.base);
        let rows = 1u64 << round;
        let target = Self::place_of(split / base + rows, split % base, base);
        if target.segment >= self.buckets.len() {
            return;
        }
        let source = Self::place_of(split / base, split % base, base);
        let _column = self.locks[(split % base) as usize].0.write();
        // SAFETY: both buckets are of this column, whose lock is held exclusively; they are two.
        let (from, to) = unsafe { (&mut *self.bucket(source).0.get(), &mut *self.bucket(target).0.get()) };
        let mut moved = Vec::new();
        from.each(|tag, slot| {
            if u64::from(self.cell(slot).location.load(Ordering::Relaxed)) & rows != 0 {
                moved.push((tag, slot));
            }
        });
        for (tag, slot) in moved {
            from.remove(slot);
            to.add(tag, slot);
        }
        let next = if split + 1 == rows * base { (round + 1) << 32 } else { state + 1 };
        self.state.store(next, Ordering::Release);
    }

    /// Drops every entry. For `Drop` and tests; a table in use is emptied by unlinking.
    fn clear(&mut self) {
        for segment in &mut self.buckets {
            for bucket in segment.get_mut().into_iter().flat_map(|buckets| buckets.iter_mut()) {
                let lanes = std::mem::replace(bucket.0.get_mut(), Lanes::empty());
                lanes.each(|_, slot| {
                    let (segment, offset) = Self::cell_place(slot);
                    if let Some(cells) = self.cells[segment].get() {
                        // SAFETY: the slot was linked, so its content is initialised; `&mut self` means that nobody
                        // else is here, and the lanes that named it are gone.
                        unsafe { (*cells[offset].entry.get()).assume_init_drop() };
                    }
                });
            }
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
    _guard: RwLockWriteGuard<'t, ()>,
}

impl<K, V> Locked<'_, K, V> {
    fn lanes(&self) -> &Lanes {
        // SAFETY: the lock of its column is held exclusively, and through `&self` nobody writes.
        unsafe { &*self.bucket.0.get() }
    }

    fn lanes_mut(&mut self) -> &mut Lanes {
        // SAFETY: the lock of its column is held exclusively, and `&mut self` is the only way to it.
        unsafe { &mut *self.bucket.0.get() }
    }

    /// The slot of a key.
    #[inline]
    pub(crate) fn find(&self, hash: Hash, matches: impl Fn(&K) -> bool) -> Option<Slot> {
        self.lanes().find(hash.tag(), |slot| {
            // SAFETY: `slot` is linked in this bucket, whose column's lock is held.
            matches(unsafe { &self.table.content(slot).0 })
        })
    }

    fn holds(&self, slot: Slot) -> bool {
        let mut held = false;
        self.lanes().each(|_, s| held |= s == slot);
        held
    }

    /// The entry of a slot that was found under this lock.
    pub(crate) fn entry(&self, slot: Slot) -> (&K, &V) {
        assert!(self.holds(slot), "slot {slot} is not in this bucket");
        // SAFETY: linked here, as just asserted, and the lock is held for as long as `self` is borrowed.
        let (key, value) = unsafe { self.table.content(slot) };
        (key, value)
    }

    /// Replaces the value of a slot that was found under this lock.
    pub(crate) fn replace(&mut self, slot: Slot, value: V) -> V {
        assert!(self.holds(slot), "slot {slot} is not in this bucket");
        // SAFETY: linked here, as just asserted, and the lock is held exclusively.
        let entry = unsafe { (*self.table.cell(slot).entry.get()).assume_init_mut() };
        std::mem::replace(&mut entry.1, value)
    }

    /// Puts an entry into a free slot and links it here.
    ///
    /// # Safety
    /// The caller owns the slot (see the module's argument), and `hash` is that by which this bucket was locked.
    #[inline]
    pub(crate) unsafe fn link(&mut self, hash: Hash, slot: Slot, key: K, value: V) {
        let cell = self.table.cell(slot);
        cell.location.store(hash.location(), Ordering::Release);
        // SAFETY: an owned slot is in no bucket, so nobody else reaches its content, which is uninitialised.
        unsafe { (*cell.entry.get()).write((key, value)) };
        self.lanes_mut().add(hash.tag(), slot);
    }

    /// Takes an entry out of a slot that was found under this lock. The caller owns the slot then.
    #[inline]
    pub(crate) fn unlink(&mut self, slot: Slot) -> (K, V) {
        assert!(self.lanes_mut().remove(slot), "slot {slot} is not in this bucket");
        // SAFETY: it was linked here until just now, so it is initialised, and nobody else reaches it any more.
        unsafe { (*self.table.cell(slot).entry.get()).assume_init_read() }
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
        let mut locked = table.lock(hash(key));
        assert_eq!(locked.find(hash(key), |k| *k == key), None);
        // SAFETY: each test gives a slot out once.
        unsafe { locked.link(hash(key), slot, key, key.to_string()) };
        drop(locked);
        table.grow(u64::from(slot) + 1);
    }

    #[test]
    fn finds_what_was_put_in_while_it_grows() {
        for expected in [None, Some(1), Some(100), Some(1000)] {
            let table = Table::new(expected);
            let n = if cfg!(miri) { 200 } else { 5_000 };
            for key in 0..n {
                insert(&table, key as Slot, key);
                assert!(table.read(hash(key), |k| *k == key, |slot, _, _, v| (slot, v.clone())).is_some());
            }
            for key in 0..n {
                let found = table.read(hash(key), |k| *k == key, |slot, _, _, v| (slot, v.clone()));
                assert_eq!(found, Some((key as Slot, key.to_string())));
            }
            for key in n..n + 100 {
                assert!(table.read(hash(key), |k| *k == key, |_, _, _, _| ()).is_none());
            }
            // Buckets stay evenly full: linear hashing that split the wrong ones would chain.
            let state = table.state.load(Ordering::Relaxed);
            assert!(((u64::from(table.base) << (state >> 32)) + u64::from(state as u32)) * FILL >= n);
        }
    }

    #[test]
    fn unlinks_by_slot_and_drops_the_rest() {
        let table = Table::new(None);
        for key in 0..150 {
            insert(&table, key as Slot, key);
        }
        for slot in (0..150).step_by(2) {
            let mut locked = table.lock_slot(slot).expect("it is linked");
            assert_eq!(locked.unlink(slot), (u64::from(slot), slot.to_string()));
            drop(locked);
            assert!(table.lock_slot(slot).is_none());
        }
        for key in 0..150 {
            let found = table.read(hash(key), |k| *k == key, |_, _, _, _| ()).is_some();
            assert_eq!(found, key % 2 == 1);
        }
    }

    #[test]
    fn keys_of_one_bucket_chain_and_unchain() {
        let mut lanes = Lanes::empty();
        for slot in 0..40 {
            lanes.add(7, slot);
        }
        for slot in (0..40).rev().step_by(3).chain((0..40).filter(|s| s % 3 != 0)) {
            assert!(lanes.remove(slot));
            assert!(!lanes.remove(slot));
        }
        assert!(lanes.is_empty());
    }
}
