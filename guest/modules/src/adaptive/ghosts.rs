//! What is remembered of entries that left.

use alloc::{vec, vec::Vec};

use super::past::Past;

/// Ghosts whose keys hash alike share a set of this many; the one unused for longest makes way.
pub(super) const WAYS: usize = 8;

/// No ghost: a class that there is not.
const EMPTY: u32 = 0xff;

const TIME_BITS: u32 = 14;
const TIMES: u32 = (1 << TIME_BITS) - 1;

/// The past of entries that left, by a hash of their key: 4 bytes each, and a bounded number.
///
/// A set-associative table, not a queue with an index: no links, no growth, one cache line an operation. A ghost is 8
/// bits of class, 14 of time and 10 of the hash. Two keys that agree in set and hash bits are mistaken for each
/// other, which happens to less than one new key in a hundred and harms nobody. The time is coarser than that of
/// residents; it wraps around after some 250 times as many requests as there are residents.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    sets: Vec<[u32; WAYS]>,
    /// A unit of their time is 2 to this many units.
    coarse: u32,
}

impl Ghosts {
    /// How many there may be.
    pub(super) fn room(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// Makes room for so many, where there is none yet.
    pub(super) fn open(&mut self, room: usize, coarse: u32) {
        self.sets = vec![[EMPTY; WAYS]; room.div_ceil(WAYS)];
        self.coarse = coarse;
    }

    /// Makes twice the room. Hashes are not kept whole, so one cannot tell to which half of its set a ghost belongs:
    /// it goes to both, and the wrong copy dies of age.
    pub(super) fn double(&mut self) {
        self.sets = self.sets.iter().flat_map(|&set| [set, set]).collect();
    }

    fn place(&self, hash: u32) -> (usize, u32) {
        (((u64::from(hash) * self.sets.len() as u64) >> 32) as usize, hash << 22)
    }

    fn past(&self, ghost: u32, now: u32) -> Past {
        let age = self.age(ghost, now) << self.coarse | (1 << self.coarse) >> 1;
        Past::of_class(now.wrapping_sub(age), ghost & 0xff)
    }

    /// In coarse units.
    fn age(&self, ghost: u32, now: u32) -> u32 {
        (now >> self.coarse).wrapping_sub(ghost >> 8) & TIMES
    }

    /// Recalls and forgets a ghost.
    #[inline]
    pub(super) fn take(&mut self, hash: u32, now: u32) -> Option<Past> {
        if self.sets.is_empty() {
            return None;
        }
        let (set, tag) = self.place(hash);
        let is_it = |&ghost: &u32| ghost >> 22 == tag >> 22 && ghost & 0xff != EMPTY;
        let way = self.sets[set].iter().position(is_it)?;
        let ghost = core::mem::replace(&mut self.sets[set][way], EMPTY);
        Some(self.past(ghost, now))
    }

    /// Remembers one; answers with the ghost that had to go for it. `each` sees every ghost of the set: a random
    /// sample of all ghosts, for nothing.
    #[inline]
    pub(super) fn put(&mut self, hash: u32, past: Past, now: u32, mut each: impl FnMut(Past)) -> Option<Past> {
        if self.sets.is_empty() {
            return None;
        }
        let (set, tag) = self.place(hash);
        let (mut way, mut oldest) = (0, 0);
        for (i, &ghost) in self.sets[set].iter().enumerate() {
            let age = if ghost & 0xff == EMPTY {
                u32::MAX
            } else {
                each(self.past(ghost, now));
                self.age(ghost, now) + 1
            };
            if age > oldest {
                (way, oldest) = (i, age);
            }
        }
        let time = past.then(now) >> self.coarse & TIMES;
        let ghost = core::mem::replace(&mut self.sets[set][way], tag | time << 8 | past.class() as u32);
        (ghost & 0xff != EMPTY).then(|| self.past(ghost, now))
    }

    /// The unit of time doubles.
    pub(super) fn double_unit(&mut self, now: u32) {
        for i in 0..self.sets.len() {
            for way in 0..WAYS {
                let ghost = self.sets[i][way];
                if ghost & 0xff != EMPTY {
                    let past = self.past(ghost, now).double_unit(now);
                    let time = past.then(now / 2) >> self.coarse & TIMES;
                    self.sets[i][way] = ghost & !0x3f_ffff | time << 8 | past.class() as u32;
                }
            }
        }
    }
}
