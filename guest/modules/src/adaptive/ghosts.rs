//! What is remembered of entries that left.

use alloc::{vec, vec::Vec};

use super::past::Past;

/// Entries that share a hash compete for this many places; the one untouched for longest goes.
pub(super) const WAYS: usize = 8;

/// The past of entries that left, by a hash of their key: 6 bytes each, of bounded number.
///
/// A set-associative table, not a queue with an index: no links, no growth, one or two cache lines an operation. Two
/// keys whose hashes agree in set and tag are mistaken for each other, which is rare (below 1 % even at 10 M residents)
/// and harms nobody.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    sets: Vec<Set>,
    live: usize,
}

#[derive(Clone, Copy, Debug)]
struct Set {
    /// [`Past`] and time of the last use.
    pasts: [u32; WAYS],
    tags: [u16; WAYS],
}

const EMPTY: Set = Set { pasts: [Past::ABSENT.0; WAYS], tags: [0; WAYS] };

impl Ghosts {
    /// How many there may be.
    pub(super) fn room(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Makes room for about `room`, the first time exactly, later in doublings. A ghost's hash is not kept whole, so
    /// doubling cannot tell which half of a set it belongs to: it goes to both, and the wrong copy dies of age.
    pub(super) fn reserve(&mut self, room: usize) {
        if self.sets.is_empty() {
            self.sets = vec![EMPTY; room.div_ceil(WAYS)];
        }
        while self.room() < room {
            self.sets = self.sets.iter().flat_map(|&set| [set, set]).collect();
            self.live *= 2;
        }
    }

    #[inline]
    fn place(&self, hash: u32) -> (usize, u16) {
        (((u64::from(hash) * self.sets.len() as u64) >> 32) as usize, hash as u16)
    }

    /// Recalls and forgets a ghost.
    #[inline]
    pub(super) fn take(&mut self, hash: u32) -> Option<Past> {
        if self.sets.is_empty() {
            return None;
        }
        let (set, tag) = self.place(hash);
        let set = &mut self.sets[set];
        let way = (0..WAYS).find(|&way| set.tags[way] == tag && set.pasts[way] != Past::ABSENT.0)?;
        self.live -= 1;
        Some(Past(core::mem::replace(&mut set.pasts[way], Past::ABSENT.0)))
    }

    /// Remembers one; answers with the ghost that had to go for it. `each` sees every ghost of the set: a random
    /// sample of all ghosts, for free.
    #[inline]
    pub(super) fn put(&mut self, hash: u32, past: Past, now: u32, mut each: impl FnMut(Past)) -> Option<Past> {
        if self.sets.is_empty() {
            return None;
        }
        let (set, tag) = self.place(hash);
        let set = &mut self.sets[set];
        let (mut way, mut oldest) = (0, 0);
        for (i, &ghost) in set.pasts.iter().enumerate() {
            let ghost = Past(ghost);
            let age = if ghost == Past::ABSENT {
                u32::MAX
            } else {
                each(ghost);
                ghost.age(now) + 1
            };
            if age > oldest {
                (way, oldest) = (i, age);
            }
        }
        let gone = Past(core::mem::replace(&mut set.pasts[way], past.0));
        set.tags[way] = tag;
        if gone == Past::ABSENT {
            self.live += 1;
            return None;
        }
        Some(gone)
    }

    /// Ages are halved: the unit of time has doubled.
    pub(super) fn double_unit(&mut self, now: u32) {
        for past in self.sets.iter_mut().flat_map(|set| &mut set.pasts) {
            *past = Past(*past).double_unit(now).0;
        }
    }
}
