//! A shard: a table, and the policy that decides who stays in it.
//!
//! Operations change the table at once, and leave a note for the policy: a hit sets a bit, everything else puts a note
//! into the *inbox*. When enough has come together, whoever put the last note there puts a batch together, asks the
//! policy, and takes the victims out (*maintenance*). So a hit never enters a policy, nor runs maintenance, but in a cache
//! that is so small that the policy hears of every read ([`Reads`]). The policy is always a little behind: by at most a
//! batch, which is one event in a small cache and [`MOST_BATCH`] in a large one.
//!
//! # The life of a slot
//!
//! It is *given out* by the inbox together with the note of the arrival, under the inbox's lock, and linked right
//! after, under the lock of the bucket, which is held all the while. Maintenance may meet the note before the slot is
//! linked; looking for the slot it then waits for the bucket. The slot is `KNOWN` from when the policy is told until
//! it is told of the departure, or names it as a victim. Only maintenance gives a slot back, after the batch that says
//! it departed: a slot never means two entries in one batch.
//!
//! Locks are taken in this order: policy, bucket, inbox. Entries that leave are dropped, and listeners called, after
//! all of them are released.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, Instant};

use crate::RemovalCause;
use crate::eviction::{Batch, Entries, Eviction, Fault, NEVER, Ranking, Slot};
use crate::locks::Lock;
use crate::stopwatch::Stopwatch;
use crate::sync::{Mutex, MutexGuard, Ordering};
use crate::table::{Hash, Occupied, Table};
use crate::timers::Timers;
use crate::touches::Touches;

/// The most arrivals that wait for the policy, where nothing smaller was asked for: so few calls that they do not show in the 99.9th
/// percentile of an operation. With twice as many a mix of reads and insertions takes a twentieth less time, for each entry's
/// reads are told of and marked anew half as often; but SIEVE lost 0.6 points of hits over a trace, where half a point is allowed and
/// it loses 0.3 now, and the 99.99th percentile went from 44 to 68 microseconds.
pub(crate) const MOST_BATCH: u32 = 128;
/// A batch is at most this fraction of the residents: no policy loses half a point of hits to it against batches of one. With a
/// quarter of it a database trace in a cache of 9,344 took a ninth longer.
const BATCH_FRACTION: u64 = 64;
/// With fewer residents a batch is one event: a few entries more or less make a difference there.
const SINGLY_BELOW: u64 = 1024;
/// With fewer residents the policy hears of every read.
const EACH_BELOW: u64 = 128;
/// With each batch, maintenance looks at so many words of 64 slots for what was read. That is a shard of up to 131,072
/// entries whole, so that its policy hears of a read before the next arrivals push anybody out, and of a larger one a thousandth
/// comes in before all was looked at. With half as many, `adaptive` lost up to 0.8 points over a disk's trace that loops; with a
/// word for each arrival, SIEVE, whose hand may stand among the newcomers, lost up to two points to reads that it had not heard
/// of yet.
const SWEEP: u32 = 2048;
/// The entries of so many slots are in the processor's caches anyway.
const CACHED: usize = 1 << 14;
/// How many faults a report keeps.
const FAULTS_KEPT: usize = 16;

type HashSet<T> = std::collections::HashSet<T, foldhash::fast::RandomState>;

/// An entry that left, and why.
pub(crate) type Removed<K, V> = (K, V, RemovalCause);

/// A note: an entry that came in, or whose value was replaced.
#[derive(Clone, Copy)]
struct Note {
    slot: Slot,
    location: u32,
    weight: u32,
    cost: u32,
    expires_at: u64,
}

/// A note of a replaced value, and how many arrivals had been noted before it: a slot may be of another entry by then.
#[derive(Clone, Copy)]
struct Change {
    note: Note,
    after: usize,
}

/// What operations leave for maintenance.
#[derive(Default)]
struct Inbox {
    /// Slots to give out again.
    free: Vec<Slot>,
    /// Slots below this were given out.
    next: Slot,
    arrived: Vec<Note>,
    changed: Vec<Change>,
    departed: Vec<Slot>,
    /// Entries that a read made expire sooner.
    hastened: Vec<Slot>,
    /// Entries in the table.
    count: u64,
    /// What they weigh.
    weight: u64,
}

/// How urgently maintenance is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    No,
    /// A batch is full.
    Soon,
    /// The bound is at stake: wait for your turn.
    Now,
}

/// The policy has been told of the slot's entry, and has not been told, nor said itself, that it left.
const KNOWN: u8 = 1;
/// The entry left before the policy was told of it: its arrival is to be skipped.
const STRUCK: u8 = 2;
/// The slot is in the batch that is being put together.
const IN_BATCH: u8 = 4;

/// What maintenance remembers of each slot.
#[derive(Default)]
struct Marks(Vec<u8>);

impl Marks {
    /// Whether any of `marks` is set.
    #[inline]
    fn is(&self, slot: Slot, marks: u8) -> bool {
        self.0.get(slot as usize).is_some_and(|m| m & marks != 0)
    }

    #[inline]
    fn set(&mut self, slot: Slot, mark: u8) {
        let at = slot as usize;
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        self.0[at] |= mark;
    }

    /// Takes a mark away; answers whether it was set.
    #[inline]
    fn unset(&mut self, slot: Slot, mark: u8) -> bool {
        let Some(m) = self.0.get_mut(slot as usize) else { return false };
        let was = *m & mark != 0;
        *m &= !mark;
        was
    }

    fn clear(&mut self, slot: Slot) {
        self.unset(slot, u8::MAX);
    }
}

/// A batch as the policy was told it, and what it answered.
struct Logged {
    batch: Batch,
    victims: Vec<Slot>,
}

/// Numbers that only maintenance changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) policy_calls: u64,
    pub(crate) policy_nanos: u64,
    pub(crate) evicted: u64,
    pub(crate) expired: u64,
    /// Evictions that the host chose itself.
    pub(crate) fallback_evictions: u64,
    pub(crate) faults: u64,
    pub(crate) traps: u64,
    pub(crate) recent_faults: Vec<(Arc<str>, Fault)>,
}

impl Tally {
    /// Counts one that maintenance took out.
    fn left(&mut self, cause: RemovalCause) {
        match cause {
            RemovalCause::Expired => self.expired += 1,
            _ => self.evicted += 1,
        }
    }
}

/// The policy of a shard and what maintenance needs at hand.
pub(crate) struct Seat {
    /// `None` after a fatal fault: the host then evicts by itself.
    policy: Option<Box<dyn Eviction>>,
    name: Arc<str>,
    batch: Batch,
    /// Victims that the policy named in this batch.
    victims: Vec<Slot>,
    arrived: Vec<Note>,
    changed: Vec<Change>,
    departed: Vec<Slot>,
    hastened: Vec<Slot>,
    /// Changes of entries that the policy will only now hear of.
    early_changes: HashMap<Slot, Change, foldhash::fast::RandomState>,
    /// Reads of such entries.
    carried: Vec<Slot>,
    /// Where looking for reads goes on.
    sweep: Slot,
    /// Whether there may be marks of reads that are in nobody's notes.
    has_old_marks: bool,
    /// Evicted by the host itself; the policy hears with the next batch.
    overruled: Vec<Slot>,
    timers: Timers,
    marks: Marks,
    /// While a successor is being prepared: what it has missed.
    log: Option<Vec<Logged>>,
    /// Where the host's own eviction goes on looking.
    hand: Slot,
    /// The policy calls when [`Shard::tidy`] was here last.
    calls_seen: u64,
    pub(crate) tally: Tally,
}

/// How a shard is set up.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) capacity: u64,
    pub(crate) expected: Option<u32>,
    /// The user's own batch size.
    pub(crate) batch: Option<u32>,
    pub(crate) stripes: usize,
    pub(crate) weighted: bool,
    /// Mixed into fingerprints, so that they differ between shards.
    pub(crate) index: u32,
    pub(crate) seed: u64,
}

impl Shape {
    /// How many arrivals the policy is told of at once, where there are so many entries.
    #[inline]
    fn batch_size(&self, count: u64) -> u64 {
        match self.batch {
            Some(batch) => u64::from(batch),
            None if count < SINGLY_BELOW => 1,
            None => (count / BATCH_FRACTION).min(u64::from(MOST_BATCH)),
        }
    }

    /// Slots that are given out beyond the entries expected, while some come in before others are evicted: two batches, and
    /// some.
    fn slack(&self) -> usize {
        let expected = u64::from(self.expected.unwrap_or(0));
        (2 * self.batch_size(expected)).min(expected) as usize + 16
    }
}

/// See the module's documentation.
pub(crate) struct Shard<K, V> {
    pub(crate) table: Table<K, V>,
    pub(crate) touches: Touches,
    inbox: Lock<Inbox>,
    seat: Mutex<Seat>,
    /// As [`Reads`].
    reads: AtomicU8,
    pub(crate) shape: Shape,
}

/// What the policy hears of reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Reads {
    /// Each, in order: where a batch is to be one event, and in a cache of a few entries, whose user counts along.
    Each,
    /// The first of each entry since it heard last, in order. A further one costs no more than in a large cache.
    First,
    /// Which entries were read since it heard last, in no order.
    Marked,
}

/// What a new or replaced entry brings besides key and value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) weight: u32,
    pub(crate) cost: u32,
    pub(crate) expires_at: u64,
    /// With a time to live and a time to idle: the end of the former.
    pub(crate) live_until: u64,
}

impl<K, V> Shard<K, V> {
    pub(crate) fn new(shape: Shape, policy: Box<dyn Eviction>, name: Arc<str>) -> Self {
        Shard {
            table: Table::new(shape.expected, shape.slack(), shape.weighted),
            touches: Touches::new(shape.stripes),
            inbox: Lock::new(Inbox::default()),
            seat: Mutex::new(Seat {
                policy: Some(policy),
                name,
                batch: Batch::default(),
                victims: Vec::new(),
                arrived: Vec::new(),
                changed: Vec::new(),
                departed: Vec::new(),
                hastened: Vec::new(),
                early_changes: HashMap::default(),
                carried: Vec::new(),
                sweep: 0,
                has_old_marks: false,
                overruled: Vec::new(),
                timers: Timers::new(),
                marks: Marks::default(),
                log: None,
                hand: 0,
                calls_seen: 0,
                tally: Tally::default(),
            }),
            reads: AtomicU8::new(Reads::Each as u8),
            shape,
        }
    }

    /// The fingerprint that policies see: made of the 32 bits of the hash that the table keeps, so that it can be given
    /// again at any time without the key.
    fn fingerprint(&self, location: u32) -> u64 {
        let mut z = u64::from(location) | u64::from(self.shape.index) << 32;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[inline]
    fn due(&self, inbox: &Inbox) -> Due {
        let batch = self.shape.batch_size(inbox.count);
        let waiting = inbox.arrived.len() as u64;
        // A small cache, and a heavy entry, cannot wait.
        let over = inbox.weight > self.shape.capacity.saturating_add(self.shape.capacity / 16) && self.shape.weighted;
        if waiting >= 2 * batch || over || (batch == 1 && waiting > 0) {
            Due::Now
        } else if waiting >= batch || (inbox.departed.len() + inbox.changed.len()) as u64 >= batch.max(16) {
            Due::Soon
        } else {
            Due::No
        }
    }

    /// What the policy is to hear of reads while there are so many entries.
    fn reads_of(&self, count: u64) -> Reads {
        match self.shape.batch_size(count) {
            1 if self.shape.batch == Some(1) || count < EACH_BELOW => Reads::Each,
            1 => Reads::First,
            _ => Reads::Marked,
        }
    }

    #[inline]
    fn hears(&self, reads: Reads) -> bool {
        self.reads.load(Ordering::Relaxed) == reads as u8
    }

    /// The end of the time to live of an entry that has a time to idle as well.
    pub(crate) fn live_until(&self, slot: Slot) -> u64 {
        self.table.live_until(slot)
    }

    /// Notes that an entry was read. A slot that was given to another entry meanwhile makes it a wrong hint, no more.
    #[inline]
    pub(crate) fn touched(&self, slot: Slot) -> Due {
        if self.hears(Reads::Marked) {
            self.table.hint_read(slot);
            return Due::No;
        }
        self.touched_in_order(slot)
    }

    /// As [`Self::touched`], where the cache is so small that the policy hears of reads in their order.
    #[inline(never)]
    fn touched_in_order(&self, slot: Slot) -> Due {
        if self.hears(Reads::Each) {
            return if self.touches.note(slot) { Due::Soon } else { Due::No };
        }
        if self.table.mark_read(slot) {
            // It is told with the next arrival: until then nobody is pushed out.
            self.touches.note(slot);
        }
        Due::No
    }

    /// Notes that a read made an entry expire sooner. Its column is locked.
    #[cold]
    pub(crate) fn hastened(&self, slot: Slot) {
        self.inbox.lock().hastened.push(slot);
    }

    /// Puts an entry in, or replaces the value of its key: the answer has the old one. Does neither if `may`, asked under
    /// the lock of the column, says no; it is told when the entry that is there expires. `placed` is told the slot of what
    /// comes in, under the same lock.
    #[allow(clippy::type_complexity)] // What left, and what to do next; or what was brought.
    #[allow(clippy::too_many_arguments)] // One call.
    #[inline(always)]
    pub(crate) fn insert(
        &self,
        hash: Hash,
        key: K,
        value: V,
        terms: Terms,
        may: impl FnOnce(Option<u64>) -> bool,
        placed: impl FnOnce(Slot),
        now: impl FnOnce() -> u64,
    ) -> Result<(Option<Removed<K, V>>, Due), (K, V)>
    where
        K: Eq,
    {
        let mut bucket = match self.table.lock(hash).find(hash, |k| *k == key) {
            Ok(entry) => {
                if !may(Some(entry.expires_at())) {
                    return Err((key, value));
                }
                placed(entry.slot());
                let (replaced, due) = self.replace(entry, hash, value, terms, now);
                return Ok((Some((key, replaced.0, replaced.1)), due));
            }
            Err(_) if !may(None) => return Err((key, value)),
            Err(bucket) => bucket,
        };
        let mut inbox = self.inbox.lock();
        let slot = inbox.free.pop().unwrap_or_else(|| {
            let slot = inbox.next;
            inbox.next += 1;
            self.table.ensure_cell(slot);
            slot
        });
        inbox.arrived.push(Note::new(slot, hash, terms));
        inbox.count += 1;
        inbox.weight += u64::from(terms.weight);
        let count = inbox.count;
        let due = self.due(&inbox);
        drop(inbox);
        self.table.set_weight(slot, terms.weight);
        if terms.live_until != self.table.live_until(slot) {
            self.table.set_live_until(slot, terms.live_until);
        }
        self.table.set_expires_at(slot, terms.expires_at);
        placed(slot);
        // SAFETY: the inbox gave the slot out just now, to nobody else; the bucket was locked by `hash`.
        unsafe { bucket.link(hash, slot, key, value) };
        drop(bucket);
        self.table.grow(count);
        Ok((None, due))
    }

    /// Replaces the value of an entry.
    #[inline]
    fn replace(
        &self,
        mut entry: Occupied<'_, K, V>,
        hash: Hash,
        value: V,
        terms: Terms,
        now: impl FnOnce() -> u64,
    ) -> ((V, RemovalCause), Due) {
        let slot = entry.slot();
        let old_value = entry.replace(value);
        let old_weight = self.table.weight(slot);
        let old_expiry = entry.expires_at();
        let cause =
            if old_expiry == NEVER { RemovalCause::Replaced } else { cause(old_expiry, now(), RemovalCause::Replaced) };
        if terms.live_until != self.table.live_until(slot) {
            self.table.set_live_until(slot, terms.live_until);
        }
        let mut due = Due::No;
        if old_weight != terms.weight || old_expiry != terms.expires_at {
            self.table.set_weight(slot, terms.weight);
            self.table.set_expires_at(slot, terms.expires_at);
            let mut inbox = self.inbox.lock();
            inbox.weight = inbox.weight + u64::from(terms.weight) - u64::from(old_weight);
            let after = inbox.arrived.len();
            inbox.changed.push(Change { note: Note::new(slot, hash, terms), after });
            due = self.due(&inbox);
        }
        drop(entry);
        ((old_value, cause), due.max(self.touched(slot)))
    }

    /// Takes an entry out, and leaves a note that it departed.
    fn take_out(&self, entry: Occupied<'_, K, V>) -> ((K, V), Due) {
        let (slot, weight) = (entry.slot(), entry.weight());
        let (content, _locked) = entry.unlink();
        let mut inbox = self.inbox.lock();
        inbox.departed.push(slot);
        inbox.count -= 1;
        inbox.weight -= u64::from(weight);
        (content, self.due(&inbox))
    }

    /// Takes a key's entry out, if `condition` holds for it. `None` if `may`, asked under the lock of the column, says no.
    #[allow(clippy::type_complexity)] // What left, and what to do next; or nothing of that.
    pub(crate) fn remove_if(
        &self,
        hash: Hash,
        matches: impl Fn(&K) -> bool,
        may: impl FnOnce() -> bool,
        condition: impl FnOnce(&K, &V, u64) -> bool,
    ) -> Option<(Option<(K, V)>, Due)> {
        let bucket = self.table.lock(hash);
        if !may() {
            return None;
        }
        let Ok(entry) = bucket.find(hash, matches) else { return Some((None, Due::No)) };
        let (key, value) = entry.entry();
        if !condition(key, value, entry.expires_at()) {
            return Some((None, Due::No));
        }
        let (content, due) = self.take_out(entry);
        Some((Some(content), due))
    }

    /// Slots that were given out so far: an upper bound for looking at all.
    pub(crate) fn slots(&self) -> Slot {
        self.inbox.lock().next
    }

    /// Calls `f` on the entry of a slot, if there is one, under an exclusive lock.
    pub(crate) fn look<R>(&self, slot: Slot, f: impl FnOnce(&K, &V, u64) -> R) -> Option<R> {
        let entry = self.table.lock_slot(slot)?;
        let (key, value) = entry.entry();
        Some(f(key, value, entry.expires_at()))
    }

    /// Takes every entry out for which `condition` holds.
    pub(crate) fn remove_all(
        &self,
        mut condition: impl FnMut(&K, &V) -> bool,
        now: u64,
        removed: &mut Vec<Removed<K, V>>,
    ) {
        for slot in 0..self.slots() {
            let Some(entry) = self.table.lock_slot(slot) else { continue };
            let (key, value) = entry.entry();
            if condition(key, value) {
                let cause = cause(entry.expires_at(), now, RemovalCause::Explicit);
                let ((key, value), _) = self.take_out(entry);
                removed.push((key, value, cause));
            }
        }
    }

    /// Entries and their weight.
    pub(crate) fn size(&self) -> (u64, u64) {
        let inbox = self.inbox.lock();
        (inbox.count, inbox.weight)
    }

    /// Runs maintenance if it is due. Entries that leave are appended to `removed`, for the caller to drop.
    pub(crate) fn maintain(&self, due: Due, now: u64, removed: &mut Vec<Removed<K, V>>) {
        let mut seat = match due {
            Due::No => return,
            Due::Soon => match self.seat.try_lock() {
                Some(seat) => seat,
                None => return,
            },
            Due::Now => {
                let seat = self.seat.lock();
                // Somebody else may have done it while we waited.
                if self.due(&self.inbox.lock()) == Due::No {
                    return;
                }
                seat
            }
        };
        self.run_batch(&mut seat, now, removed);
    }

    /// Runs maintenance until nothing waits.
    pub(crate) fn settle(&self, now: u64, removed: &mut Vec<Removed<K, V>>) {
        let mut seat = self.seat.lock();
        self.settle_seat(&mut seat, now, removed);
    }

    /// Takes out what expired; and where nothing has happened since the last time, does what waits for more to come
    /// together. Where something has, traffic sees to that, in batches that do not depend on when this is called.
    pub(crate) fn tidy(&self, now: u64, removed: &mut Vec<Removed<K, V>>) {
        // Who holds it does the same right now.
        let Some(mut seat) = self.seat.try_lock() else { return };
        let calls = seat.tally.policy_calls;
        if std::mem::replace(&mut seat.calls_seen, calls) == calls {
            self.settle_seat(&mut seat, now, removed);
        } else {
            let now = now.max(seat.batch.now);
            self.expire(&mut seat, now, removed);
        }
    }

    fn settle_seat(&self, seat: &mut Seat, now: u64, removed: &mut Vec<Removed<K, V>>) {
        for _ in 0..3 {
            self.run_batch(seat, now, removed);
            let inbox = self.inbox.lock();
            let waiting = inbox.arrived.len() + inbox.changed.len() + inbox.departed.len();
            if waiting == 0 && seat.carried.is_empty() && seat.overruled.is_empty() {
                return;
            }
        }
    }

    /// The maintenance state, for reports.
    pub(crate) fn seat(&self) -> MutexGuard<'_, Seat> {
        self.seat.lock()
    }

    /// Puts a batch together, asks the policy, and takes the victims out.
    fn run_batch(&self, seat: &mut Seat, now: u64, removed: &mut Vec<Removed<K, V>>) {
        // A thread that read the clock earlier may get here later.
        let now = now.max(seat.batch.now);
        self.expire(seat, now, removed);
        let mut weight = {
            let mut inbox = self.inbox.lock();
            std::mem::swap(&mut inbox.arrived, &mut seat.arrived);
            std::mem::swap(&mut inbox.changed, &mut seat.changed);
            std::mem::swap(&mut inbox.departed, &mut seat.departed);
            std::mem::swap(&mut inbox.hastened, &mut seat.hastened);
            // What the policy knows of after this batch.
            inbox.weight
        };
        seat.victims.clear();
        self.collect(seat, now);
        let mut victims = std::mem::take(&mut seat.victims);
        self.advance(seat, &mut victims);

        let mut freed = std::mem::take(&mut seat.departed);
        freed.append(&mut seat.overruled);
        // The memory of all that leave is asked for first, and waited for together.
        if seat.marks.0.len() > CACHED {
            victims.iter().for_each(|&victim| self.table.prefetch_cell(victim));
            victims.iter().for_each(|&victim| self.table.prefetch_bucket(victim));
        }
        let (mut count_out, mut weight_out) = (0, 0);
        for &victim in &victims {
            seat.timers.cancel(victim);
            let heavy = u64::from(self.table.weight(victim));
            weight = weight.saturating_sub(heavy);
            // Not there: somebody removed it meanwhile, and its departure is in the inbox.
            let Some(entry) = self.table.lock_slot(victim) else { continue };
            let cause = cause(entry.expires_at(), now, RemovalCause::Size);
            let heavy = u64::from(entry.weight());
            let ((key, value), locked) = entry.unlink();
            drop(locked);
            count_out += 1;
            weight_out += heavy;
            seat.tally.left(cause);
            removed.push((key, value, cause));
            freed.push(victim);
        }
        seat.victims = victims;
        if weight > self.shape.capacity {
            // A victim that was replaced by a lighter value since the policy named it is not its fault.
            let weight = weight.min(self.size().1 - weight_out);
            if weight > self.shape.capacity {
                self.overrule(seat, weight - self.shape.capacity, &mut freed, removed);
            }
        }

        for &slot in &freed {
            seat.timers.cancel(slot);
            seat.marks.clear(slot);
            self.table.take_read(slot);
        }
        let mut inbox = self.inbox.lock();
        inbox.count -= count_out;
        inbox.weight -= weight_out;
        inbox.free.extend_from_slice(&freed);
        let reads = self.reads_of(inbox.count);
        if !self.hears(reads) {
            self.reads.store(reads as u8, Ordering::Relaxed);
            seat.has_old_marks = true;
        }
        drop(inbox);
        freed.clear();
        seat.departed = freed;
    }

    /// Takes out what expired. Only entries that the policy knows of have a timer.
    fn expire(&self, seat: &mut Seat, now: u64, removed: &mut Vec<Removed<K, V>>) {
        let Seat { timers, tally, .. } = seat;
        timers.advance(now, |slot| {
            let expires_at = self.table.expires_at(slot);
            // Without the lock, what was set a moment ago may not be seen yet.
            if expires_at > now && expires_at != NEVER {
                return Some(expires_at);
            }
            let entry = self.table.lock_slot(slot)?;
            // It may have been renewed before the lock was ours.
            let expires_at = entry.expires_at();
            if expires_at > now {
                return Some(expires_at);
            }
            let ((key, value), _) = self.take_out(entry);
            tally.expired += 1;
            removed.push((key, value, RemovalCause::Expired));
            None
        });
    }

    /// Turns the notes into a batch.
    fn collect(&self, seat: &mut Seat, now: u64) {
        let Seat { batch, marks, .. } = seat;
        batch.clear();
        batch.now = now;
        for &slot in &seat.overruled {
            // A successor may have refused it meanwhile, and has forgotten it then.
            if marks.unset(slot, KNOWN) {
                batch.departed.push(slot);
            }
        }
        for &slot in &seat.departed {
            if marks.unset(slot, KNOWN) {
                batch.departed.push(slot);
            } else {
                marks.set(slot, STRUCK);
            }
        }
        // The last note of each slot counts.
        for change in seat.changed.iter().rev() {
            let note = &change.note;
            if marks.is(note.slot, IN_BATCH | STRUCK) {
                continue;
            }
            marks.set(note.slot, IN_BATCH);
            if marks.is(note.slot, KNOWN) {
                self.put(&mut batch.changed, note);
                seat.timers.schedule(note.slot, note.expires_at);
            } else {
                seat.early_changes.insert(note.slot, *change);
            }
        }
        for change in &seat.changed {
            marks.unset(change.note.slot, IN_BATCH);
        }
        if !self.hears(Reads::Marked) {
            let mut reads = std::mem::take(&mut seat.carried);
            if std::mem::take(&mut seat.has_old_marks) {
                // Of when the cache was larger, or a read that is being noted: that one is told twice, which is no harm.
                let mut from = 0;
                self.table.sweep_reads(&mut from, self.slots(), u32::MAX, &mut reads);
            }
            let carried = reads.len();
            self.touches.take(&mut reads);
            reads[carried..].iter().for_each(|&slot| _ = self.table.take_read(slot));
            self.tell_reads(seat, &reads);
            // What the policy will only now hear of is touched with the next batch.
            reads.retain(|&slot| !seat.marks.is(slot, KNOWN | STRUCK));
            seat.carried = reads;
        } else {
            let Seat { batch, marks, sweep, carried, .. } = seat;
            // Reads that were noted while the cache was smaller.
            self.touches.take(carried);
            carried.drain(..).for_each(|slot| self.table.hint_read(slot));
            self.table.sweep_reads(sweep, self.slots(), SWEEP, &mut batch.touched);
            batch.touched.retain(|&slot| {
                let is_known = marks.is(slot, KNOWN);
                if !is_known && !marks.is(slot, STRUCK) {
                    // The policy will only now hear of it.
                    carried.push(slot);
                }
                is_known
            });
        }
        let batch = &mut seat.batch;
        for (at, note) in seat.arrived.iter().enumerate() {
            // Before the slot is looked for: whoever links it holds the lock of this bucket.
            self.table.set_location(note.slot, note.location);
            if seat.marks.is(note.slot, STRUCK) {
                continue;
            }
            seat.marks.set(note.slot, KNOWN);
            // As it is since. What was noted before the arrival was of an entry that had the slot before.
            let change = seat.early_changes.get(&note.slot).filter(|change| change.after > at);
            let note = change.map_or(note, |change| &change.note);
            self.put(&mut batch.arrived, note);
            seat.timers.schedule(note.slot, note.expires_at);
        }
        for &slot in &seat.hastened {
            if seat.marks.is(slot, KNOWN) {
                seat.timers.schedule(slot, self.table.expires_at(slot));
            }
        }
        seat.hastened.clear();
        seat.early_changes.clear();
        seat.arrived.clear();
        seat.changed.clear();
    }

    /// Tells noted reads in order. A batch names a slot once, so the reads are cut into batches where one repeats; the
    /// last is left for the batch that is being put together.
    fn tell_reads(&self, seat: &mut Seat, reads: &[Slot]) {
        for &slot in reads {
            if seat.marks.is(slot, IN_BATCH) {
                seat.unmark_batch();
                let mut answer = std::mem::take(&mut seat.victims);
                self.advance(seat, &mut answer);
                seat.victims = answer;
                let now = seat.batch.now;
                seat.batch.clear();
                seat.batch.now = now;
            }
            // A victim of the part that was told just now is none of the policy's residents any more.
            if seat.marks.is(slot, KNOWN) {
                seat.marks.set(slot, IN_BATCH);
                seat.batch.touched.push(slot);
            }
        }
        seat.unmark_batch();
    }

    /// Appends a note to columns; a column comes into being with the first value that is not its default.
    fn put(&self, entries: &mut Entries, note: &Note) {
        let before = entries.slots.len();
        entries.slots.push(note.slot);
        entries.fingerprints.push(self.fingerprint(note.location));
        column(&mut entries.weights, before, note.weight, 1);
        column(&mut entries.costs, before, note.cost, 0);
        column(&mut entries.expiries, before, note.expires_at, NEVER);
    }

    /// Asks the policy; appends to `victims` those of its answers that are true.
    fn advance(&self, seat: &mut Seat, victims: &mut Vec<Slot>) {
        if seat.batch.is_empty() {
            return;
        }
        let told = victims.len();
        if let Some(policy) = &mut seat.policy {
            let began = Stopwatch::start();
            let answer = policy.advance(&seat.batch, victims);
            seat.tally.policy_nanos += began.elapsed_nanos();
            seat.tally.policy_calls += 1;
            if let Err(fault) = answer {
                victims.truncate(told);
                seat.fault(fault);
            }
        }
        let slots = self.slots() as usize;
        if victims.len() - told > slots {
            seat.fault(Fault::TooMany { answered: victims.len() - told, residents: slots });
            victims.truncate(told + slots);
        }
        let mut wrong = None;
        let mut true_ones = told;
        for at in told..victims.len() {
            let victim = victims[at];
            if seat.marks.unset(victim, KNOWN) {
                victims[true_ones] = victim;
                true_ones += 1;
            } else {
                wrong = Some(victim);
            }
        }
        victims.truncate(true_ones);
        if let Some(slot) = wrong {
            seat.fault(Fault::NotResident { slot });
        }
        if let Some(log) = &mut seat.log {
            log.push(Logged { batch: seat.batch.clone(), victims: victims[told..].to_vec() });
        }
    }

    /// Evicts without the policy: a clock over the slots that spares, once, what was read since it last heard.
    fn overrule(&self, seat: &mut Seat, excess: u64, freed: &mut Vec<Slot>, removed: &mut Vec<Removed<K, V>>) {
        if seat.policy.is_some() {
            seat.fault(Fault::TooFew { excess });
        }
        let slots = self.slots();
        let mut left = excess;
        let (mut count_out, mut weight_out) = (0, 0);
        for step in 0..u64::from(slots) * 2 {
            if left == 0 {
                break;
            }
            let slot = seat.hand;
            seat.hand = if slot + 1 >= slots { 0 } else { slot + 1 };
            let spared = step < u64::from(slots) && self.table.take_read(slot);
            if !seat.marks.is(slot, KNOWN) || spared {
                continue;
            }
            let Some(entry) = self.table.lock_slot(slot) else { continue };
            let cause = cause(entry.expires_at(), seat.batch.now, RemovalCause::Size);
            let heavy = u64::from(entry.weight());
            let ((key, value), locked) = entry.unlink();
            drop(locked);
            left = left.saturating_sub(heavy);
            count_out += 1;
            weight_out += heavy;
            removed.push((key, value, cause));
            seat.tally.left(cause);
            seat.tally.fallback_evictions += 1;
            if seat.policy.is_some() || seat.log.is_some() {
                seat.overruled.push(slot);
            } else {
                freed.push(slot);
            }
        }
        let mut inbox = self.inbox.lock();
        inbox.count -= count_out;
        inbox.weight -= weight_out;
    }
}

/// Why an entry leaves: `otherwise`, if it had not expired.
fn cause(expires_at: u64, now: u64, otherwise: RemovalCause) -> RemovalCause {
    if expires_at != NEVER && expires_at <= now { RemovalCause::Expired } else { otherwise }
}

fn column<T: Copy + PartialEq>(column: &mut Vec<T>, before: usize, value: T, default: T) {
    if !column.is_empty() {
        column.push(value);
    } else if value != default {
        column.resize(before, default);
        column.push(value);
    }
}

impl Note {
    #[inline]
    fn new(slot: Slot, hash: Hash, terms: Terms) -> Self {
        let Terms { weight, cost, expires_at, .. } = terms;
        Note { slot, location: hash.location(), weight, cost, expires_at }
    }
}

/// What the swap of a shard's policy did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Swapped {
    /// The longest time for which the policy's lock was held at a stretch.
    pub(crate) pause: Duration,
    pub(crate) adopted: u64,
    /// What the successor did not want.
    pub(crate) evicted: u64,
    /// Whether it took over what its predecessor had learned.
    pub(crate) recalled: bool,
    /// Traps of the shard's policies before this one was seated.
    pub(crate) traps: u64,
}

/// Residents that a successor adopts in one call: short enough to let others run in between.
const ADOPT_AT_ONCE: usize = 4096;
/// Logged batches that are caught up with while the lock is held, in the end.
const LEVEL: usize = 4;
/// As many are caught up with at a time while traffic goes on.
const STRIDE: usize = 16;
/// So many more than twice those there were may wait before traffic is held up: a thread was not on a processor for a moment.
const LAG: usize = 256;

impl<K, V> Shard<K, V> {
    /// Seats a successor, beside live traffic: it adopts the residents in the predecessor's order while that goes on,
    /// then is told what it missed, and is seated when it is level. Operations wait only where the policy's lock is
    /// held: while the order is read (and, for a successor of the same name, what was learned), and while the last few
    /// batches are caught up with.
    pub(crate) fn swap(
        &self,
        mut successor: Box<dyn Eviction>,
        name: Arc<str>,
        now: u64,
        removed: &mut Vec<Removed<K, V>>,
    ) -> Result<Swapped, Fault> {
        let mut report = Swapped::default();
        // What can wait for the lock to be released does: checking the answer, reading what was learned.
        let (ranking, learned, known, locations) = {
            let mut seat = self.seat.lock();
            let began = Instant::now();
            self.settle_seat(&mut seat, now, removed);
            let ranking = seat.ask(|policy| policy.residents());
            let learned = if *seat.name == *name { seat.ask(|policy| policy.learned()) } else { Vec::new() };
            let known = Marks(seat.marks.0.clone());
            // Only maintenance sets these. Read later, one might be of the slot's next entry, and the log of this one.
            let locations: Vec<u32> = (0..).take(known.0.len()).map(|slot| self.table.location(slot)).collect();
            seat.log = Some(Vec::new());
            report.pause = began.elapsed();
            (ranking, learned, known, locations)
        };
        let ranking = of_known(ranking, known);
        report.adopted = ranking.slots.len() as u64;
        let mut heir = Heir { policy: &mut *successor, told: 0, unwanted: HashSet::default() };
        let mut caught_up = || -> Result<MutexGuard<'_, Seat>, Fault> {
            report.recalled = !learned.is_empty() && heir.policy.recall(&learned)?;
            self.adopt(&mut heir, &ranking, &locations)?;
            let mut missed = VecDeque::new();
            // How many there were when this round began, and how many of those it has still to hear of.
            let (mut behind, mut left) = (usize::MAX, 0);
            loop {
                let mut seat = self.seat.lock();
                let began = Instant::now();
                missed.extend(seat.log.replace(Vec::new()).unwrap_or_default());
                if left == 0 && missed.len() > LEVEL && missed.len() <= behind / 4 * 3 {
                    behind = missed.len();
                    left = behind;
                }
                // Where it does not catch up, because traffic is faster than it is, operations wait until it has; the sooner
                // that is seen, the shorter.
                if left > 0 && missed.len() <= behind.saturating_mul(2).saturating_add(LAG) {
                    drop(seat);
                    let stride = left.min(STRIDE);
                    left -= stride;
                    heir.replay(missed.drain(..stride))?;
                    continue;
                }
                heir.replay(missed.drain(..))?;
                // What it refused leaves like any victim, with the next batch.
                let mut unwanted: Vec<Slot> = heir.unwanted.drain().collect();
                unwanted.sort_unstable();
                for slot in unwanted {
                    // What it says is not to be believed: it may be any number.
                    if !seat.marks.unset(slot, KNOWN) {
                        continue;
                    }
                    let Some(entry) = self.table.lock_slot(slot) else { continue };
                    let cause = cause(entry.expires_at(), now, RemovalCause::Size);
                    let ((key, value), _) = self.take_out(entry);
                    seat.tally.left(cause);
                    report.evicted += u64::from(cause == RemovalCause::Size);
                    removed.push((key, value, cause));
                }
                report.pause = report.pause.max(began.elapsed());
                return Ok(seat);
            }
        };
        match caught_up() {
            Ok(mut seat) => {
                seat.log = None;
                seat.policy = Some(successor);
                seat.name = name;
                report.traps = seat.tally.traps;
                Ok(report)
            }
            Err(fault) => {
                let mut seat = self.seat.lock();
                seat.log = None;
                Err(fault)
            }
        }
    }

    /// Has a successor adopt residents. What the table says of weight and expiry may be of a later entry by now; the log says
    /// so too, and the successor hears it next.
    fn adopt(&self, heir: &mut Heir<'_>, ranking: &Ranking, locations: &[u32]) -> Result<(), Fault> {
        let mut entries = Entries::default();
        for (slots, uses) in ranking.slots.chunks(ADOPT_AT_ONCE).zip(ranking.uses.chunks(ADOPT_AT_ONCE)) {
            entries.clear();
            for &slot in slots {
                let note = Note {
                    slot,
                    location: locations[slot as usize],
                    weight: self.table.weight(slot),
                    cost: 0,
                    expires_at: self.table.expires_at(slot),
                };
                self.put(&mut entries, &note);
            }
            let mut answer = Vec::new();
            heir.policy.adopt(&entries, uses, &mut answer)?;
            heir.take(answer, slots.len())?;
        }
        Ok(())
    }
}

/// A successor that takes over.
struct Heir<'p> {
    policy: &'p mut dyn Eviction,
    /// The entries that it has been told of.
    told: usize,
    /// What it refused, or evicted, of them.
    unwanted: HashSet<Slot>,
}

impl Heir<'_> {
    /// Takes an answer to a call that told of so many entries. Without a bound, what a module answers would pile up until it
    /// is seated.
    fn take(&mut self, answer: Vec<Slot>, told: usize) -> Result<(), Fault> {
        self.told += told;
        let answered = self.unwanted.len() + answer.len();
        if answered > self.told {
            return Err(Fault::TooMany { answered, residents: self.told });
        }
        self.unwanted.extend(answer);
        Ok(())
    }

    /// Tells it what it missed. It hears of the predecessor's victims before the arrivals that pushed them out, so there is
    /// room for these, and it has nothing to choose.
    fn replay(&mut self, log: impl Iterator<Item = Logged>) -> Result<(), Fault> {
        for Logged { mut batch, victims } in log {
            let refused = &mut self.unwanted;
            let gone: HashSet<Slot> = victims.iter().copied().collect();
            let arriving: HashSet<Slot> = batch.arrived.slots.iter().copied().collect();
            batch.departed.extend(victims.iter().filter(|slot| !arriving.contains(slot)));
            batch.departed.retain(|slot| !refused.contains(slot));
            let departed: HashSet<Slot> = batch.departed.iter().copied().collect();
            let known = |slot: &Slot| !refused.contains(slot) && !departed.contains(slot);
            let mut touches = std::mem::take(&mut batch.touches).into_iter();
            let mut kept = Vec::new();
            batch.touched.retain(|slot| {
                let times = touches.next().unwrap_or(1);
                let keep = known(slot);
                if keep {
                    kept.push(times);
                }
                keep
            });
            batch.touches = kept;
            keep_entries(&mut batch.changed, known);
            keep_entries(&mut batch.arrived, |slot| !gone.contains(slot));
            // A slot that was refused, then given to a new entry, is the successor's again.
            for slot in &arriving {
                refused.remove(slot);
            }
            let mut answer = Vec::new();
            self.policy.advance(&batch, &mut answer)?;
            self.take(answer, batch.arrived.slots.len())?;
        }
        Ok(())
    }
}

/// A ranking of those that are `known`, each once; those that the answer leaves out come last, by slot.
fn of_known(mut answered: Ranking, mut known: Marks) -> Ranking {
    answered.uses.resize(answered.slots.len(), 0);
    let mut kept = 0;
    for at in 0..answered.slots.len() {
        let slot = answered.slots[at];
        if known.unset(slot, KNOWN) {
            answered.slots[kept] = slot;
            answered.uses[kept] = answered.uses[at];
            kept += 1;
        }
    }
    answered.slots.truncate(kept);
    for (slot, marks) in (0..).zip(&known.0) {
        if marks & KNOWN != 0 {
            answered.slots.push(slot);
        }
    }
    answered.uses.truncate(kept);
    answered.uses.resize(answered.slots.len(), 0);
    answered
}

/// Keeps the entries whose slots `keep` holds for.
fn keep_entries(entries: &mut Entries, keep: impl Fn(&Slot) -> bool) {
    let kept: Vec<bool> = entries.slots.iter().map(keep).collect();
    if kept.iter().all(|&kept| kept) {
        return;
    }
    fn column<T>(column: &mut Vec<T>, kept: &[bool]) {
        let mut kept = kept.iter();
        column.retain(|_| *kept.next().unwrap_or(&true));
    }
    column(&mut entries.slots, &kept);
    column(&mut entries.fingerprints, &kept);
    column(&mut entries.weights, &kept);
    column(&mut entries.costs, &kept);
    column(&mut entries.expiries, &kept);
}

impl Seat {
    fn unmark_batch(&mut self) {
        for &slot in &self.batch.touched {
            self.marks.unset(slot, IN_BATCH);
        }
    }

    /// What the policy answers; nothing where it does not.
    fn ask<T: Default>(&mut self, ask: impl FnOnce(&mut dyn Eviction) -> Result<T, Fault>) -> T {
        let Some(policy) = &mut self.policy else { return T::default() };
        ask(&mut **policy).unwrap_or_else(|fault| {
            self.fault(fault);
            T::default()
        })
    }

    fn fault(&mut self, fault: Fault) {
        tracing::warn!(policy = &*self.name, %fault, "the policy is at fault");
        self.tally.faults += 1;
        if fault.is_fatal() {
            self.tally.traps += 1;
            self.policy = None;
        }
        if self.tally.recent_faults.len() < FAULTS_KEPT {
            self.tally.recent_faults.push((self.name.clone(), fault));
        }
    }

    /// The bytes that the policy and the timers hold.
    pub(crate) fn memory(&self) -> usize {
        self.policy.as_ref().map_or(0, |policy| policy.memory()) + self.timers.memory()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet, VecDeque};

    use super::*;

    /// First in, first out; and asserts that it is told the truth.
    #[derive(Default)]
    struct Fifo {
        capacity: u64,
        order: VecDeque<Slot>,
        weights: HashMap<Slot, u64>,
    }

    impl Fifo {
        fn evict(&mut self, victims: &mut Vec<Slot>) {
            while self.weights.values().sum::<u64>() > self.capacity {
                let victim = self.order.pop_front().expect("what weighs is there");
                self.weights.remove(&victim);
                victims.push(victim);
            }
        }

        fn take(&mut self, entries: &Entries, victims: &mut Vec<Slot>) {
            for (at, &slot) in entries.slots.iter().enumerate() {
                let weight = entries.weights.get(at).map_or(1, |&weight| u64::from(weight));
                assert_eq!(self.weights.insert(slot, weight), None, "{slot} was there already");
                self.order.push_back(slot);
                self.evict(victims);
            }
        }
    }

    impl Eviction for Fifo {
        fn advance(&mut self, batch: &Batch, victims: &mut Vec<Slot>) -> Result<(), Fault> {
            for slot in &batch.departed {
                assert!(self.weights.remove(slot).is_some(), "{slot} departed, and was not there");
                self.order.retain(|s| s != slot);
                assert!(!batch.arrived.slots.contains(slot), "{slot} is two entries in one batch");
            }
            for (at, slot) in batch.changed.slots.iter().enumerate() {
                let weight = batch.changed.weights.get(at).map_or(1, |&weight| u64::from(weight));
                assert!(self.weights.insert(*slot, weight).is_some(), "{slot} changed, and was not there");
            }
            let touched: HashSet<Slot> = batch.touched.iter().copied().collect();
            assert_eq!(touched.len(), batch.touched.len(), "each once");
            assert!(touched.iter().all(|slot| self.weights.contains_key(slot)), "what is touched is there");
            self.evict(victims);
            self.take(&batch.arrived, victims);
            Ok(())
        }

        fn residents(&mut self) -> Result<Ranking, Fault> {
            Ok(Ranking { slots: self.order.iter().copied().collect(), uses: Vec::new() })
        }

        fn adopt(&mut self, residents: &Entries, _: &[u32], victims: &mut Vec<Slot>) -> Result<(), Fault> {
            self.take(residents, victims);
            Ok(())
        }
    }

    fn fifo(capacity: u64) -> Box<dyn Eviction> {
        Box::new(Fifo { capacity, ..Fifo::default() })
    }

    fn shard(capacity: u64, batch: Option<u32>) -> Shard<u64, Arc<u64>> {
        let shape = Shape { capacity, expected: None, batch, stripes: 1, weighted: true, index: 0, seed: 0 };
        Shard::new(shape, fifo(capacity), "fifo".into())
    }

    /// Keys of few buckets and tags, so that they meet.
    fn hash(key: u64) -> Hash {
        Hash(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60 | (key % 3) << 32)
    }

    fn terms(weight: u32, expires_at: u64) -> Terms {
        Terms { weight, cost: 0, expires_at, live_until: NEVER }
    }

    fn put(shard: &Shard<u64, Arc<u64>>, key: u64, value: &Arc<u64>, weight: u32, expires_at: u64) {
        let mut removed = Vec::new();
        let inserted = shard.insert(hash(key), key, value.clone(), terms(weight, expires_at), |_| true, |_| (), || 0);
        let Ok((_, due)) = inserted else { unreachable!("it may") };
        shard.maintain(due, 0, &mut removed);
    }

    fn read(shard: &Shard<u64, Arc<u64>>, key: u64) -> Option<u64> {
        let found = shard.table.read(hash(key), key.is_multiple_of(2), |k| *k == key, |slot, _, value| (slot, **value));
        let (slot, value) = found?;
        shard.maintain(shard.touched(slot), 0, &mut Vec::new());
        Some(value)
    }

    /// First in, first out; says which reads it has heard of.
    #[cfg(not(shuttle))]
    struct Listening(VecDeque<Slot>, usize, Arc<Mutex<Vec<Slot>>>);

    #[cfg(not(shuttle))]
    impl Eviction for Listening {
        fn advance(&mut self, batch: &Batch, victims: &mut Vec<Slot>) -> Result<(), Fault> {
            self.2.lock().extend(&batch.touched);
            self.0.extend(&batch.arrived.slots);
            let excess = self.0.len().saturating_sub(self.1);
            victims.extend(self.0.drain(..excess));
            Ok(())
        }

        fn residents(&mut self) -> Result<Ranking, Fault> {
            Ok(Ranking::default())
        }

        fn adopt(&mut self, _: &Entries, _: &[u32], _: &mut Vec<Slot>) -> Result<(), Fault> {
            Ok(())
        }
    }

    /// A shard of so many entries, full: the key of each is its slot. And what its policy has heard.
    #[cfg(not(shuttle))]
    fn listening(entries: usize, batch: Option<u32>) -> (Shard<u64, u64>, Arc<Mutex<Vec<Slot>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let capacity = entries as u64;
        let shape = Shape { capacity, expected: None, batch, stripes: 1, weighted: false, index: 0, seed: 0 };
        let shard = Shard::new(shape, Box::new(Listening(VecDeque::new(), entries, heard.clone())), "listening".into());
        (0..capacity).for_each(|key| arrive(&shard, key));
        shard.settle(0, &mut Vec::new());
        assert!(heard.lock().is_empty());
        (shard, heard)
    }

    #[cfg(not(shuttle))]
    fn arrive(shard: &Shard<u64, u64>, key: u64) {
        let hash = Hash(key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let Ok((_, due)) = shard.insert(hash, key, key, terms(1, NEVER), |_| true, |_| (), || 0) else {
            unreachable!()
        };
        shard.maintain(due, 0, &mut Vec::new());
    }

    /// One that it heard of too late would be evicted as if nobody had asked for it.
    #[cfg(not(shuttle))]
    #[test]
    fn all_that_was_read_is_heard_of_before_the_next_victims() {
        const ENTRIES: usize = 20_000;
        let (shard, heard) = listening(ENTRIES, None);
        for slot in 0..ENTRIES as Slot {
            shard.touched(slot);
        }
        assert_eq!(heard.lock().len(), 0);
        (ENTRIES as u64..)
            .take_while(|&key| {
                arrive(&shard, key);
                heard.lock().is_empty()
            })
            .for_each(drop);
        assert_eq!(heard.lock().len(), ENTRIES);
    }

    /// Reads of `slots`, in rounds, and what was heard of them by the next arrival.
    #[cfg(not(shuttle))]
    fn hears_of(entries: usize, batch: Option<u32>, slots: &[Slot], rounds: usize) -> Vec<Slot> {
        let (shard, heard) = listening(entries, batch);
        for &slot in std::iter::repeat_n(slots, rounds).flatten() {
            shard.maintain(shard.touched(slot), 0, &mut Vec::new());
        }
        if shard.hears(Reads::First) {
            assert!(heard.lock().is_empty(), "a read by itself calls nobody");
        }
        arrive(&shard, entries as u64);
        // And what was told is forgotten.
        let told = heard.lock().clone();
        arrive(&shard, entries as u64 + 1);
        assert_eq!(*heard.lock(), told);
        shard.touched(slots[0]);
        arrive(&shard, entries as u64 + 2);
        assert_eq!(heard.lock()[told.len()..], slots[..1]);
        told
    }

    #[cfg(not(shuttle))]
    #[test]
    fn a_small_cache_tells_first_reads_in_order() {
        assert_eq!(hears_of(500, None, &[70, 30, 70, 90, 30], 1), [70, 30, 90]);
        // More than a thread notes where each is told.
        assert_eq!(hears_of(500, None, &[70, 30, 90], 1_000), [70, 30, 90]);
        let all: Vec<Slot> = (3..400).rev().collect();
        assert_eq!(hears_of(500, None, &all, 1), all);
    }

    #[cfg(not(shuttle))]
    #[test]
    fn a_tiny_cache_and_an_exact_one_tell_each_read() {
        assert_eq!(hears_of(50, None, &[7, 3, 7, 9, 3], 1), [7, 3, 7, 9, 3]);
        assert_eq!(hears_of(500, Some(1), &[70, 30, 70, 90, 30], 1), [70, 30, 70, 90, 30]);
        assert_eq!(hears_of(50, None, &[7, 3, 9], 100), [7, 3, 9].repeat(100));
    }

    /// After settling: the sums are those of what is there, the policy knows the same, and no slot is lost.
    fn check(shard: &Shard<u64, Arc<u64>>) {
        shard.settle(0, &mut Vec::new());
        let mut linked = HashSet::new();
        let mut weight = 0;
        for slot in 0..shard.slots() {
            if shard.look(slot, |_, _, _| ()).is_some() {
                linked.insert(slot);
                weight += u64::from(shard.table.weight(slot));
            }
        }
        assert_eq!(shard.size(), (linked.len() as u64, weight));
        assert!(weight <= shard.shape.capacity);
        let inbox = shard.inbox.lock();
        let free: HashSet<Slot> = inbox.free.iter().copied().collect();
        assert_eq!(free.len(), inbox.free.len(), "each free slot once");
        assert!(free.is_disjoint(&linked));
        assert_eq!(free.len() + linked.len(), inbox.next as usize, "no slot is lost");
        drop(inbox);
        let mut seat = shard.seat.lock();
        assert_eq!(seat.tally.traps, 0);
        let known = seat.policy.as_mut().expect("it is seated").residents().expect("it answers");
        assert_eq!(known.slots.into_iter().collect::<HashSet<_>>(), linked);
    }

    /// Three threads, a few operations each; the last swaps the policy.
    fn contend(seed: u64, batch: Option<u32>) {
        let shard = Arc::new(shard(3, batch));
        let value = Arc::new(7u64);
        let threads: Vec<_> = (0..3u64)
            .map(|thread| {
                let (shard, value) = (shard.clone(), value.clone());
                spawn(move || {
                    let mut state = seed * 3 + thread;
                    let mut random = |n: u64| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        (state >> 33) % n
                    };
                    for _ in 0..6 {
                        let key = random(5);
                        match random(8) {
                            0..=3 => put(&shard, key, &value, random(3) as u32 + 1, NEVER),
                            4 => assert!(read(&shard, key).is_none_or(|value| value == 7)),
                            5 => drop(shard.remove_if(hash(key), |k| *k == key, || true, |_, _, _| true)),
                            6 => shard.remove_all(|k, _| k % 2 == 0, 0, &mut Vec::new()),
                            _ if thread == 2 => {
                                shard.swap(fifo(3), "fifo".into(), 0, &mut Vec::new()).expect("it takes over");
                            }
                            _ => shard.settle(0, &mut Vec::new()),
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("it ends well"));
        check(&shard);
        let size = shard.size().0;
        assert_eq!(Arc::strong_count(&value) as u64, 1 + size, "what left was dropped, once");
        drop(shard);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[cfg(not(shuttle))]
    use std::thread::spawn;

    #[cfg(shuttle)]
    use shuttle::thread::spawn;

    #[cfg(not(shuttle))]
    #[test]
    fn threads_that_contend() {
        for seed in 0..if cfg!(miri) { 5 } else { 500 } {
            contend(seed, if seed % 2 == 0 { None } else { Some(2) });
        }
    }

    #[cfg(shuttle)]
    #[test]
    fn shuttle_contend() {
        let seed = std::sync::atomic::AtomicU64::new(0);
        shuttle::check_random(
            move || {
                let seed = seed.fetch_add(1, Ordering::SeqCst);
                contend(seed, if seed % 2 == 0 { None } else { Some(2) });
            },
            20_000,
        );
    }

    /// A change of an entry that the policy has not heard of is told with the arrival, so an honest policy is never
    /// found to have left too much.
    #[cfg(not(shuttle))]
    #[test]
    fn a_change_before_the_arrival_is_told() {
        let shard = shard(10, Some(100));
        let value = Arc::new(7u64);
        for key in 0..5 {
            put(&shard, key, &value, 2, NEVER);
        }
        put(&shard, 0, &value, 6, NEVER);
        check(&shard);
        assert_eq!(shard.seat().tally.faults, 0);
    }

    /// What was noted of an entry that left is not told of the next in its slot.
    #[cfg(not(shuttle))]
    #[test]
    fn a_change_is_of_the_entry_that_it_was_noted_of() {
        let shard = shard(100, Some(1000));
        let value = Arc::new(7u64);
        put(&shard, 1, &value, 5, NEVER);
        check(&shard);
        // A victim whose value is replaced just before it is taken out leaves such a note.
        let note = Note::new(0, hash(1), terms(90, NEVER));
        shard.remove_if(hash(1), |k| *k == 1, || true, |_, _, _| true);
        check(&shard);
        shard.inbox.lock().changed.push(Change { note, after: 0 });
        put(&shard, 2, &value, 5, 1000);
        check(&shard);
        let known = |shard: &Shard<_, _>| shard.seat().marks.is(0, KNOWN);
        assert!(known(&shard));
        let mut removed = Vec::new();
        shard.settle(2000, &mut removed);
        assert_eq!(removed.len(), 1, "it has its own deadline");
    }
}
