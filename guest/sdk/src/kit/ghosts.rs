//! Keys that left, remembered by fingerprint.
//!
//! A ring holds 29-bit tags in order of insertion, an open-addressed table holds the same tags for look-ups: nothing is
//! linked, so a look-up is one cache line and an insertion two. The table says how many copies of a tag the ring still
//! holds, so a ghost that is removed need not be searched for in the ring: its copy there is skipped when its turn
//! comes.

use alloc::{collections::VecDeque, vec, vec::Vec};

use super::by_slot::{LEAP, LEAPS_FROM};
use super::{Memo, Recollection};

const TAG_BITS: u32 = 29;
/// A word of the table is `tag << 3 | copies << 1 | live`. `copies`, 1 to 3, counts the tag in the ring; when `live`, the
/// newest of them is the ghost and the others are dead; else all are. 0 is an empty place.
const MOST_COPIES: u32 = 3;

/// A bounded first-in-first-out set of fingerprints: the ghosts of 2Q, ARC, S3-FIFO and their like.
///
/// Ghosts have weights, and the oldest leave when those of all exceed the bound; with weights of 1 the bound is a
/// count. 10 to 14 bytes a ghost, 4 more once a weight is not 1; memory grows with the ghosts there are and never with the
/// bound. Every operation takes amortised constant time. Two keys in 2²⁹ are taken for one another: among a million
/// ghosts, one stranger in 500 is.
#[derive(Clone, Debug)]
pub struct Ghosts {
    bound: u64,
    /// Tags, the oldest first; some are dead.
    ring: VecDeque<u32>,
    /// The weights of `ring`; empty while all are 1.
    weights: VecDeque<u32>,
    table: Vec<u32>,
    /// Places of `table` that are not empty.
    used: usize,
    len: usize,
    /// The weight of all copies in the ring, and of those that are dead: as far as it is known, since it is
    /// [`Self::remove`]'s caller who says what a removed ghost weighed.
    ring_weight: u64,
    dead_weight: u64,
}

fn tag_of(fingerprint: u64) -> u32 {
    // A multiplication carries every bit into the top ones: a host may have used some of the bits to choose the shard.
    (fingerprint.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - TAG_BITS)) as u32
}

impl Ghosts {
    /// No ghosts, and at most `bound` of them (or of their weight).
    pub fn new(bound: u64) -> Self {
        Ghosts {
            bound,
            ring: VecDeque::new(),
            weights: VecDeque::new(),
            table: Vec::new(),
            used: 0,
            len: 0,
            ring_weight: 0,
            dead_weight: 0,
        }
    }

    /// How many ghosts there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What they weigh together.
    pub fn weight(&self) -> u64 {
        self.ring_weight - self.dead_weight
    }

    /// The weight that they may have.
    pub fn bound(&self) -> u64 {
        self.bound
    }

    /// Sets the bound; the oldest that are too many leave.
    pub fn set_bound(&mut self, bound: u64) {
        self.bound = bound;
        while self.weight() > self.bound && self.pop_oldest() {}
    }

    /// Whether a fingerprint is among them.
    #[inline]
    pub fn contains(&self, fingerprint: u64) -> bool {
        self.find(tag_of(fingerprint)).is_some_and(|at| self.table[at] & 1 == 1)
    }

    /// Adds a fingerprint as the newest (also if it is there already). The oldest leave if they must; so does the new
    /// one at once if it alone weighs more than the bound.
    pub fn insert(&mut self, fingerprint: u64, weight: u32) {
        self.push(tag_of(fingerprint), weight);
        while self.weight() > self.bound && self.pop_oldest() {}
    }

    /// Adds a tag as the newest.
    #[inline]
    fn push(&mut self, tag: u32, weight: u32) {
        self.make_room();
        let at = self.place(tag);
        if self.table[at] & 1 == 1 {
            self.let_die(at, weight);
        }
        let word = self.table[at];
        self.len += 1;
        if (word >> 1) & 3 == MOST_COPIES {
            // It came and went so often that there is no counting another copy: it takes its last place again.
            self.table[at] = word | 1;
            self.dead_weight = self.dead_weight.saturating_sub(u64::from(weight));
        } else {
            self.used += usize::from(word == 0);
            self.table[at] = if word == 0 { tag << 3 | 0b11 } else { (word + 2) | 1 };
            if weight != 1 && self.weights.len() < self.ring.len() {
                self.weights.reserve_exact(self.ring.capacity());
                self.weights.resize(self.ring.len(), 1);
            }
            if weight != 1 || !self.weights.is_empty() {
                self.weights.push_back(weight);
            }
            self.ring.push_back(tag);
            self.ring_weight += u64::from(weight);
        }
    }

    /// Takes a fingerprint out, and answers whether it was there. `weight` is what it weighed when it was inserted; if the
    /// caller is wrong, the weight of all is a little wrong until its turn would have come.
    pub fn remove(&mut self, fingerprint: u64, weight: u32) -> bool {
        let Some(at) = self.find(tag_of(fingerprint)) else { return false };
        if self.table[at] & 1 == 0 {
            return false;
        }
        self.let_die(at, weight);
        true
    }

    /// The ghost at a place is one no more; its copy in the ring is dead.
    #[inline]
    fn let_die(&mut self, at: usize, weight: u32) {
        self.table[at] &= !1;
        self.len -= 1;
        self.dead_weight = (self.dead_weight + u64::from(weight)).min(self.ring_weight);
    }

    /// Forgets the oldest; answers whether there was one.
    pub fn pop_oldest(&mut self) -> bool {
        while let Some(tag) = self.ring.pop_front() {
            let weight = self.weights.pop_front().unwrap_or(1);
            let alive = self.forget_copy(tag);
            self.account(weight, alive);
            if alive {
                return true;
            }
        }
        false
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        *self = Ghosts::new(self.bound);
    }

    /// Writes them down for a successor. The ring is copied as it is; which of its copies are dead follows from the few
    /// tags that are.
    pub fn write(&self, memo: &mut Memo) {
        let dead: Vec<u32> =
            self.table.iter().filter(|&&word| word & 1 == 0 && word != 0).map(|word| word >> 3).collect();
        memo.reserve(4 * (self.ring.len() + self.weights.len() + dead.len()) + 32);
        memo.long(self.dead_weight);
        memo.words(&dead);
        for column in [&self.ring, &self.weights] {
            let (front, back) = column.as_slices();
            memo.word(column.len() as u32);
            memo.append(front);
            memo.append(back);
        }
    }

    /// Reads what a predecessor wrote; the oldest leave where they are more than `bound`.
    pub fn read(bound: u64, memo: &mut Recollection<'_>) -> Option<Self> {
        let dead_weight = memo.long()?;
        let (dead, ring, weights) = (memo.words()?, memo.words()?, memo.words()?);
        let tags = |tags: &[u32]| tags.iter().all(|tag| tag >> TAG_BITS == 0);
        if !(weights.is_empty() || weights.len() == ring.len()) || !tags(&ring) || !tags(&dead) {
            return None;
        }
        let mut ghosts = Ghosts::new(bound);
        // All at once: then none is swept out on the way, and the dead weight stays true.
        ghosts.ring.reserve_exact(ring.len());
        ghosts.weights.reserve_exact(weights.len());
        for (at, &tag) in ring.iter().enumerate() {
            // The newest copy of a tag is the one that may be alive.
            if let Some(at) = ghosts.find(tag)
                && ghosts.table[at] & 1 == 1
            {
                ghosts.table[at] &= !1;
                ghosts.len -= 1;
            }
            ghosts.push(tag, weights.get(at).copied().unwrap_or(1));
        }
        for tag in dead {
            if let Some(at) = ghosts.find(tag)
                && ghosts.table[at] & 1 == 1
            {
                ghosts.table[at] &= !1;
                ghosts.len -= 1;
            }
        }
        ghosts.dead_weight = match weights.is_empty() {
            true => (ghosts.ring.len() - ghosts.len) as u64,
            false => dead_weight.min(ghosts.ring_weight),
        };
        ghosts.set_bound(bound);
        Some(ghosts)
    }

    /// A copy left the ring.
    fn account(&mut self, weight: u32, alive: bool) {
        self.ring_weight -= u64::from(weight);
        if alive {
            self.len -= 1;
            self.dead_weight = self.dead_weight.min(self.ring_weight);
        } else {
            self.dead_weight = self.dead_weight.saturating_sub(u64::from(weight)).min(self.ring_weight);
        }
        if self.ring.len() == self.len {
            self.dead_weight = 0;
        }
    }

    /// Takes the oldest copy of a tag off its word, and answers whether that copy was alive.
    fn forget_copy(&mut self, tag: u32) -> bool {
        let Some(at) = self.find(tag) else { return false };
        let word = self.table[at];
        if (word >> 1) & 3 > 1 {
            self.table[at] = word - 2;
            return false;
        }
        self.vacate(at);
        word & 1 == 1
    }

    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.table.len() as u64) >> TAG_BITS) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.table.len() { 0 } else { at + 1 }
    }

    /// Where the tag is, or else the empty place where it would be. The table has one.
    #[inline]
    fn place(&self, tag: u32) -> usize {
        let mut at = self.home(tag);
        while self.table[at] != 0 && self.table[at] >> 3 != tag {
            at = self.after(at);
        }
        at
    }

    #[inline]
    fn find(&self, tag: u32) -> Option<usize> {
        if self.table.is_empty() {
            return None;
        }
        let at = self.place(tag);
        (self.table[at] != 0).then_some(at)
    }

    /// Empties a place, and closes the gap so that no tombstones build up.
    fn vacate(&mut self, mut hole: usize) {
        self.used -= 1;
        let len = self.table.len();
        let mut at = hole;
        loop {
            at = self.after(at);
            let word = self.table[at];
            if word == 0 {
                break;
            }
            let home = self.home(word >> 3);
            let from = |start: usize| if at >= start { at - start } else { at + len - start };
            if from(home) >= from(hole) {
                self.table[hole] = word;
                hole = at;
            }
        }
        self.table[hole] = 0;
    }

    /// Makes sure that one more copy fits in the ring and in the table.
    #[inline]
    fn make_room(&mut self) {
        if self.ring.len() == self.ring.capacity() {
            self.make_room_in_ring();
        }
        // At four fifths a search passes 13 places, in which half of the time of S3-FIFO went.
        if (self.used + 1) * 8 > self.table.len() * 5 {
            self.make_room_in_table();
        }
    }

    #[cold]
    #[inline(never)]
    fn make_room_in_ring(&mut self) {
        // Sweeping costs as much as the ring is long, and frees an eighth of it or more: constant, amortised.
        if (self.ring.len() - self.len) * 8 > self.ring.len() {
            self.sweep();
            return;
        }
        // As `BySlot`: room that nothing was written to costs nothing, and what a ring that moves leaves behind does.
        let leaps = self.ring.len() >= LEAPS_FROM && self.weights.is_empty();
        let more = if leaps { LEAP * self.ring.len() } else { self.ring.len() / 2 + 8 };
        let enough = self.most_copies().saturating_sub(self.ring.len());
        let more = if enough == 0 { more } else { more.min(enough) };
        self.ring.reserve_exact(more);
        if !self.weights.is_empty() {
            self.weights.reserve_exact(more);
        }
    }

    #[cold]
    #[inline(never)]
    fn make_room_in_table(&mut self) {
        let old = core::mem::take(&mut self.table);
        let len = old.len() * 3 / 2 + 8;
        let enough = self.most_copies().saturating_mul(8) / 5 + 8;
        self.table = vec![0; if enough > old.len() + 8 { len.min(enough) } else { len }];
        for word in old.into_iter().filter(|&word| word != 0) {
            let at = self.place(word >> 3);
            self.table[at] = word;
        }
    }

    /// How many copies the ring comes to hold, where the bound is a count: it is swept where an eighth are dead.
    fn most_copies(&self) -> usize {
        usize::try_from(self.bound.saturating_add(self.bound / 6 + 8)).unwrap_or(usize::MAX)
    }

    /// Drops the dead copies from the ring.
    fn sweep(&mut self) {
        for _ in 0..self.ring.len() {
            let Some(tag) = self.ring.pop_front() else { break };
            let weight = self.weights.pop_front();
            let Some(at) = self.find(tag) else { continue };
            let word = self.table[at];
            if (word >> 1) & 3 == 1 && word & 1 == 1 {
                self.ring.push_back(tag);
                self.weights.extend(weight);
            } else {
                self.forget_copy(tag);
                self.ring_weight -= u64::from(weight.unwrap_or(1));
            }
        }
        self.dead_weight = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::fingerprint;
    use std::vec::Vec;

    /// The same by a plain list.
    struct Model(Vec<(u64, u32)>, u64);

    impl Model {
        fn remove(&mut self, f: u64) -> Option<u32> {
            let at = self.0.iter().position(|g| g.0 == f)?;
            Some(self.0.remove(at).1)
        }
        fn insert(&mut self, f: u64, weight: u32) {
            self.remove(f);
            self.0.push((f, weight));
            while self.weight() > self.1 {
                self.0.remove(0);
            }
        }
        fn weight(&self) -> u64 {
            self.0.iter().map(|g| u64::from(g.1)).sum()
        }
    }

    fn against_model(bound: u64, keys: u64, weight_of: fn(u64) -> u32) {
        let (mut ghosts, mut model) = (Ghosts::new(bound), Model(Vec::new(), bound));
        // A key that came and went three times within one lap takes an older place: tell the model not to do that.
        let mut comings = std::collections::HashMap::new();
        for i in 0..20_000u64 {
            let random = fingerprint(i);
            let key = fingerprint(random % keys);
            let weight = weight_of(key);
            match random >> 61 {
                0..4 if comings.get(&key).is_none_or(|&n| n < 3) => {
                    *comings.entry(key).or_insert(0) += 1;
                    ghosts.insert(key, weight);
                    model.insert(key, weight);
                }
                4..6 => assert_eq!(ghosts.remove(key, weight), model.remove(key).is_some(), "step {i}"),
                6 if !model.0.is_empty() => {
                    model.0.remove(0);
                    assert!(ghosts.pop_oldest());
                }
                _ => {}
            }
            assert_eq!(ghosts.contains(key), model.0.iter().any(|g| g.0 == key), "step {i}");
            assert_eq!((ghosts.len(), ghosts.weight()), (model.0.len(), model.weight()), "step {i}");
            if ghosts.is_empty() && i % 64 == 0 {
                comings.clear();
                ghosts.clear();
            }
        }
        assert!(!model.0.is_empty() || !comings.is_empty());
        for (f, _) in model.0 {
            assert!(ghosts.contains(f) && ghosts.pop_oldest());
            assert!(!ghosts.contains(f), "first in, first out");
        }
        assert!(!ghosts.pop_oldest());
    }

    #[test]
    fn equals_a_plain_list() {
        against_model(50, 20_000, |_| 1);
        against_model(3, 20_000, |_| 1);
        against_model(1000, 20_000, |_| 1);
        against_model(1000, 20_000, |f| (f % 50) as u32 + 1);
    }

    #[test]
    fn memory_stays_within_what_the_docs_say() {
        let bytes = |g: &Ghosts| (g.ring.capacity() + g.table.len()) * 4;
        for bound in [1000, 30_000, 100_000] {
            let mut ghosts = Ghosts::new(bound);
            for key in 0..5 * bound {
                ghosts.insert(fingerprint(key), 1);
                if key % 3 == 0 {
                    ghosts.remove(fingerprint(key.saturating_sub(bound / 3)), 1);
                }
            }
            assert!(ghosts.len() as u64 > bound * 9 / 10);
            assert!(bytes(&ghosts) as u64 <= bound * 14, "{} bytes for {bound}", bytes(&ghosts));
        }
        let mut one = Ghosts::new(u64::MAX);
        for key in 0..100_000 {
            one.insert(fingerprint(key % 9), 1000);
            one.remove(fingerprint(key % 9), 1000);
        }
        assert!(bytes(&one) < 1000, "dead copies are swept: {}", bytes(&one));
    }

    #[test]
    fn comes_and_goes_and_is_never_lost() {
        let mut ghosts = Ghosts::new(4);
        for _ in 0..10 {
            ghosts.insert(7, 1);
            assert!(ghosts.contains(7) && ghosts.len() == 1 && ghosts.weight() == 1);
            assert!(ghosts.remove(7, 1));
            assert!(!ghosts.contains(7) && !ghosts.remove(7, 1) && ghosts.is_empty() && ghosts.weight() == 0);
        }
        ghosts.insert(7, 1);
        (0..4).for_each(|other| ghosts.insert(fingerprint(other), 1));
        assert!(!ghosts.contains(7));
    }

    #[test]
    fn a_successor_remembers_the_same() {
        for weight_of in [|_| 1, |key| key as u32 % 7 + 1] {
            let mut ghosts = Ghosts::new(500);
            for n in 0..5000 {
                let key = fingerprint(n) % 900;
                if n % 3 == 0 {
                    ghosts.remove(fingerprint(key), weight_of(key));
                } else {
                    ghosts.insert(fingerprint(key), weight_of(key));
                }
            }
            let mut memo = Memo::new(1);
            ghosts.write(&mut memo);
            let bytes = memo.into_bytes();
            let mut memo = Recollection::of(&bytes, 1).unwrap();
            let mut other = Ghosts::read(500, &mut memo).unwrap();
            assert!(memo.is_done());
            loop {
                assert_eq!((ghosts.len(), ghosts.weight()), (other.len(), other.weight()));
                assert!((0..900).all(|key| ghosts.contains(fingerprint(key)) == other.contains(fingerprint(key))));
                assert_eq!(ghosts.pop_oldest(), other.pop_oldest());
                if ghosts.is_empty() {
                    break;
                }
            }
            let fewer = Ghosts::read(100, &mut Recollection::of(&bytes, 1).unwrap()).unwrap();
            assert!(fewer.weight() <= 100 && fewer.len() > 10);
            for length in 4..bytes.len() {
                assert!(Ghosts::read(500, &mut Recollection::of(&bytes[..length], 1).unwrap()).is_none());
            }
        }
    }

    #[test]
    fn too_heavy_a_ghost_is_not_kept() {
        let mut ghosts = Ghosts::new(10);
        ghosts.insert(1, 11);
        assert!(ghosts.is_empty() && ghosts.weight() == 0);
        ghosts.insert(1, 6);
        ghosts.insert(2, 5);
        assert!(!ghosts.contains(1) && ghosts.contains(2) && ghosts.weight() == 5);
        ghosts.insert(3, 1);
        ghosts.set_bound(1);
        assert!(!ghosts.contains(2) && ghosts.contains(3) && ghosts.weight() == 1);
    }
}
