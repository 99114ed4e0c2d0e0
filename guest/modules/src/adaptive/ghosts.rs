//! What is remembered of entries that left.

use alloc::{vec, vec::Vec};

use larder_guest::kit::{Memo, Recollection};

use super::past::{NOBODY, Past, is_class};

/// Ghosts whose keys hash alike share a set of this many; the one that left first makes way.
pub(super) const WAYS: usize = 8;

const TIME_BITS: u32 = 14;
const TIMES: u32 = (1 << TIME_BITS) - 1;

/// A queue of ghosts, the one that left last first: half a cache line, moved by shifts and searched eight at a time.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
struct Set {
    /// 8 bits of each one's hash.
    tags: u64,
    /// Their classes, 8 bits each; where there is no ghost, one that there is not.
    classes: u64,
    /// 2 more bits of each one's hash, and 14 of the time when it was used last: the first four, and the others. (A number of
    /// 128 bits is shifted by a function, in WebAssembly.)
    times: [u64; 2],
}

/// The past of entries that left, by a hash of their key: 4 bytes each, and a bounded number.
///
/// A set-associative table, not a queue with an index: no links, no growth, one cache line an operation. Two keys that
/// agree in set and 10 more bits are mistaken for each other, which happens to less than one new key in a hundred and
/// harms nobody. The time is coarser than that of residents; it wraps around after some 250 times as many requests as
/// there are residents.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    sets: Vec<Set>,
    /// A unit of their time is 2 to this many units.
    coarse: u32,
}

/// `all` without the bits from `at` to `at + width`; those above close up.
fn without(all: u64, at: u32, width: u32) -> u64 {
    let below = (1 << at) - 1;
    all & below | all >> width & !below
}

impl Set {
    const EMPTY: Set = Set { tags: 0, classes: u64::from_ne_bytes([NOBODY as u8; WAYS]), times: [0; 2] };

    /// The class and the time of one.
    fn get(&self, way: usize) -> (u32, u32) {
        ((self.classes >> (8 * way) & 0xff) as u32, (self.times[way / 4] >> (16 * (way % 4)) & 0xffff) as u32)
    }

    /// Takes out the one of such a hash, and answers with its class and time.
    #[inline]
    fn take(&mut self, hash: u32) -> Option<(u32, u32)> {
        // Bytes that are 0 where the tag is this one. A borrow can only make bytes above such a one look alike.
        const ONES: u64 = u64::MAX / 0xff;
        let differ = self.tags ^ (u64::from(hash & 0xff) * ONES);
        let alike = differ.wrapping_sub(ONES) & !differ & (0x80 * ONES);
        if alike == 0 {
            return None;
        }
        let way = alike.trailing_zeros() / 8;
        let (class, time) = self.get(way as usize);
        if class as usize == NOBODY || (time ^ hash << 6) & 0xc000 != 0 {
            return None;
        }
        self.tags = without(self.tags, 8 * way, 8);
        self.classes = without(self.classes, 8 * way, 8) & u64::MAX >> 8 | (NOBODY as u64) << 56;
        let [first, last] = self.times;
        self.times = match way {
            0..4 => [without(first, 16 * way, 16) & u64::MAX >> 16 | last << 48, last >> 16],
            way => [first, without(last, 16 * (way - 4), 16)],
        };
        Some((class, time))
    }

    /// Puts one first.
    #[inline]
    fn put(&mut self, hash: u32, class: u32, time: u32) {
        self.tags = self.tags << 8 | u64::from(hash & 0xff);
        self.classes = self.classes << 8 | u64::from(class);
        let [first, last] = self.times;
        self.times = [first << 16 | u64::from(hash << 6 & 0xc000 | time), last << 16 | first >> 48];
    }
}

impl Ghosts {
    /// How many there may be.
    pub(super) fn room(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// Makes room for so many, where there is none yet.
    pub(super) fn open(&mut self, room: usize, coarse: u32) {
        self.sets = vec![Set::EMPTY; room.div_ceil(WAYS)];
        self.coarse = coarse;
    }

    /// Makes twice the room. Hashes are not kept whole, so one cannot tell to which half of its set a ghost belongs:
    /// it goes to both, and the wrong copy dies of age.
    pub(super) fn double(&mut self) {
        self.sets = self.sets.iter().flat_map(|&set| [set, set]).collect();
    }

    fn place(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.sets.len() as u64) >> 32) as usize
    }

    fn past(&self, (class, time): (u32, u32), now: u32) -> Past {
        let age = ((now >> self.coarse).wrapping_sub(time) & TIMES) << self.coarse | (1 << self.coarse) >> 1;
        Past::of_class(now.wrapping_sub(age), class)
    }

    /// Reads a word of the set of each hash, whose memory the processor so asks for all at once.
    pub(super) fn fetch(&self, hashes: impl Iterator<Item = u32>) {
        let words = hashes.filter_map(|hash| self.sets.get(self.place(hash))).map(|set| set.tags);
        core::hint::black_box(words.fold(0, core::ops::BitXor::bitxor));
    }

    /// Recalls and forgets a ghost.
    #[inline]
    pub(super) fn take(&mut self, hash: u32, now: u32) -> Option<Past> {
        let place = self.place(hash);
        let ghost = self.sets.get_mut(place)?.take(hash)?;
        Some(self.past(ghost, now))
    }

    /// Remembers one; answers with the ghost that had to go for it.
    #[inline]
    pub(super) fn put(&mut self, hash: u32, past: Past, now: u32) -> Option<Past> {
        let place = self.place(hash);
        let set = self.sets.get_mut(place)?;
        let last = set.get(WAYS - 1);
        set.put(hash, past.class() as u32, past.then(now) >> self.coarse & TIMES);
        (last.0 as usize != NOBODY).then(|| self.past(last, now))
    }

    /// Calls `each` with the ghosts of a set, those that such a hash shares it with: a random sample of all ghosts.
    pub(super) fn sample(&self, hash: u32, now: u32, mut each: impl FnMut(Past)) {
        let Some(set) = self.sets.get(self.place(hash)) else { return };
        for ghost in (0..WAYS).map(|way| set.get(way)).filter(|ghost| ghost.0 as usize != NOBODY) {
            each(self.past(ghost, now));
        }
    }

    /// Writes them down for a successor: memory as it is.
    pub(super) fn write(&self, memo: &mut Memo) {
        memo.word(self.coarse);
        let halves = |long: u64| [long as u32, (long >> 32) as u32];
        memo.records(self.sets.iter().map(|set| {
            let [[a, b], [c, d]] = [set.tags, set.classes].map(halves);
            let [[e, f], [g, h]] = set.times.map(halves);
            [a, b, c, d, e, f, g, h]
        }));
    }

    /// Reads what a predecessor wrote. Any hash and time will do, and any class that there is.
    pub(super) fn read(memo: &mut Recollection<'_>) -> Option<Self> {
        let coarse = memo.word().filter(|coarse| *coarse < 24)?;
        let sets: Vec<Set> = memo
            .records::<8>()?
            .into_iter()
            .map(|words| {
                let long = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
                Set { tags: long(0), classes: long(2), times: [long(4), long(6)] }
            })
            .collect();
        let known = |class: u8| usize::from(class) == NOBODY || is_class(class.into());
        sets.iter().all(|set| set.classes.to_le_bytes().into_iter().all(known)).then_some(Ghosts { sets, coarse })
    }

    /// The unit of time doubles.
    pub(super) fn double_unit(&mut self, now: u32) {
        for at in 0..self.sets.len() {
            let old = self.sets[at];
            let mut new = Set::EMPTY;
            for (way, ghost) in
                (0..WAYS).rev().map(|way| (way, old.get(way))).filter(|(_, ghost)| ghost.0 as usize != NOBODY)
            {
                let past = self.past(ghost, now).double_unit(now);
                let hash = (old.tags >> (8 * way) & 0xff) as u32 | (ghost.1 & 0xc000) >> 6;
                new.put(hash, past.class() as u32, past.then(now / 2) >> self.coarse & TIMES);
            }
            self.sets[at] = new;
        }
    }
}
