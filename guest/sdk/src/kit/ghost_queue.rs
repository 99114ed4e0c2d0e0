//! Entries that left, in the order in which they left, any of which may be called back.

use alloc::{collections::VecDeque, vec, vec::Vec};

use super::{Memo, Recollection};

/// Makes 32 bits of a fingerprint, none of them wasted where the host chose the shard by some of the 64.
#[inline]
pub fn fold(fingerprint: u64) -> u32 {
    (fingerprint ^ (fingerprint >> 32)) as u32
}

/// A queue of folded fingerprints that finds and forgets any of them in constant time: the ghost lists of 2Q, ARC and
/// LIRS, where a hit takes a ghost out and the oldest falls off.
///
/// Each carries a note `T` and a weight. 32 bits tell ghosts apart: among a million, one lookup in four thousand finds
/// a stranger, which costs a policy one wrong guess.
///
/// About 16 to 24 bytes a ghost and the note; 4 more once a weight is not 1. A ghost that is called back leaves a hole
/// in the queue, found out when it gets to the front, or when the holes are as many as the ghosts.
#[derive(Clone, Debug)]
pub struct GhostQueue<T = ()> {
    queue: VecDeque<(u32, T)>,
    /// As the queue; left empty while every weight is 1.
    weights: VecDeque<u32>,
    /// The position of the front of the queue. Positions count up, and wrap.
    first: u32,
    /// An open-addressed table with linear probing: the folded fingerprint, and its position.
    table: Vec<[u32; 2]>,
    len: usize,
    weight: u64,
}

/// The position of no ghost; [`GhostQueue::push`] never gets there.
const NOWHERE: u32 = u32::MAX;
const EMPTY: [u32; 2] = [0, NOWHERE];

impl<T: Copy> Default for GhostQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy> GhostQueue<T> {
    /// No ghosts.
    pub fn new() -> Self {
        GhostQueue {
            queue: VecDeque::new(),
            weights: VecDeque::new(),
            first: 0,
            table: vec![EMPTY; 8],
            len: 0,
            weight: 0,
        }
    }

    /// How many ghosts there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What they weigh together.
    #[inline]
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Puts one at the end. One with the same folded fingerprint is forgotten first.
    pub fn push(&mut self, folded: u32, note: T, weight: u32) {
        if self.queue.len() > 2 * self.len + 16 || self.first.wrapping_add(self.queue.len() as u32) > NOWHERE - 2 {
            self.close_holes();
        }
        if 4 * (self.len + 1) > 3 * self.table.len() {
            self.grow_table();
        }
        let at = self.place(folded);
        if self.table[at][1] != NOWHERE {
            let index = (self.table[at][1] - self.first) as usize;
            self.len -= 1;
            self.weight -= u64::from(self.weight_at(index));
        }
        let position = self.first + self.queue.len() as u32;
        if weight != 1 && self.weights.is_empty() {
            self.weights.resize(self.queue.len(), 1);
        }
        // (A queue that is empty has forgotten its weights; then the first of them decides again.)
        if weight != 1 || !self.weights.is_empty() {
            self.weights.push_back(weight);
        }
        self.queue.push_back((folded, note));
        self.table[at] = [folded, position];
        self.len += 1;
        self.weight += u64::from(weight);
    }

    /// Takes a ghost out, if there is one: its note and weight.
    #[inline]
    pub fn take(&mut self, folded: u32) -> Option<(T, u32)> {
        let at = self.find(folded)?;
        let index = (self.table[at][1] - self.first) as usize;
        let (note, weight) = (self.queue[index].1, self.weight_at(index));
        self.erase(at);
        self.len -= 1;
        self.weight -= u64::from(weight);
        Some((note, weight))
    }

    /// Forgets the oldest, for as long as `goes` says so of what all weigh together and the oldest's note.
    ///
    /// It is asked of ghosts that were called back, too, as long as nothing says that they were; so what it says of a note, it
    /// must say of those before.
    #[inline]
    pub fn forget_while(&mut self, mut goes: impl FnMut(u64, T) -> bool) {
        while let Some(&(_, note)) = self.queue.front()
            && goes(self.weight, note)
        {
            self.forget_first();
        }
    }

    /// Forgets the first of the queue, which may be a hole.
    fn forget_first(&mut self) {
        let Some((folded, _)) = self.queue.pop_front() else { return };
        let weight = self.weights.pop_front().unwrap_or(1);
        let position = self.first;
        self.first += 1;
        let at = self.place(folded);
        if self.table[at] == [folded, position] {
            self.erase(at);
            self.len -= 1;
            self.weight -= u64::from(weight);
        }
    }

    /// Changes every note.
    pub fn for_each_note(&mut self, mut change: impl FnMut(&mut T)) {
        self.queue.iter_mut().for_each(|(_, note)| change(note));
    }

    fn weight_at(&self, index: usize) -> u32 {
        self.weights.get(index).copied().unwrap_or(1)
    }

    /// Where the search for one begins. Multiplied: shards may have taken some bits.
    #[inline]
    fn home(&self, folded: u32) -> usize {
        let mixed = (u64::from(folded).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        mixed & (self.table.len() - 1)
    }

    #[inline]
    fn find(&self, folded: u32) -> Option<usize> {
        let at = self.place(folded);
        (self.table[at][1] != NOWHERE).then_some(at)
    }

    /// Where one is, or else the empty place where it would be.
    #[inline]
    fn place(&self, folded: u32) -> usize {
        let mut at = self.home(folded);
        while self.table[at][1] != NOWHERE && self.table[at][0] != folded {
            at = (at + 1) & (self.table.len() - 1);
        }
        at
    }

    fn insert(&mut self, folded: u32, position: u32) {
        let at = self.place(folded);
        self.table[at] = [folded, position];
    }

    /// Empties a place of the table, and lets those after it that it stood in the way of move up.
    fn erase(&mut self, mut hole: usize) {
        let mask = self.table.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            if self.table[at][1] == NOWHERE {
                break;
            }
            let home = self.home(self.table[at][0]);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.table[hole] = self.table[at];
                hole = at;
            }
        }
        self.table[hole] = EMPTY;
    }

    /// Numbers the ghosts anew, without holes.
    fn close_holes(&mut self) {
        let mut kept = 0;
        for index in 0..self.queue.len() {
            let folded = self.queue[index].0;
            let is_ghost = |at: &usize| self.table[*at][1] == self.first.wrapping_add(index as u32);
            if self.find(folded).as_ref().is_some_and(is_ghost) {
                self.queue[kept] = self.queue[index];
                if !self.weights.is_empty() {
                    self.weights[kept] = self.weights[index];
                }
                kept += 1;
            }
        }
        self.queue.truncate(kept);
        self.weights.truncate(kept);
        self.first = 0;
        self.table.fill(EMPTY);
        for index in 0..kept {
            self.insert(self.queue[index].0, index as u32);
        }
    }

    fn grow_table(&mut self) {
        let larger = vec![EMPTY; 2 * self.table.len()];
        for [folded, position] in core::mem::replace(&mut self.table, larger) {
            if position != NOWHERE {
                self.insert(folded, position);
            }
        }
    }
}

impl GhostQueue<u32> {
    /// Writes them down for a successor: the queue as it is, and a bit for each place of it that is no hole.
    pub fn write(&self, memo: &mut Memo) {
        let mut places = vec![0u32; self.queue.len().div_ceil(32)];
        for [_, position] in &self.table {
            let place = position.wrapping_sub(self.first) as usize;
            if *position != NOWHERE && place < self.queue.len() {
                places[place / 32] |= 1 << (place % 32);
            }
        }
        memo.reserve(8 * self.queue.len() + 4 * (self.weights.len() + places.len()) + 16);
        memo.words(&places);
        memo.records(self.queue.iter().map(|&(folded, note)| [folded, note]));
        let (front, back) = self.weights.as_slices();
        memo.word(self.weights.len() as u32);
        memo.append(front);
        memo.append(back);
    }

    /// Reads what a predecessor wrote.
    pub fn read(memo: &mut Recollection<'_>) -> Option<Self> {
        let places = memo.words()?;
        let queue = memo.records::<2>()?;
        let weights = memo.words()?;
        let len = queue.len();
        if places.len() != len.div_ceil(32) || !(weights.is_empty() || weights.len() == len) {
            return None;
        }
        let mut ghosts = GhostQueue::new();
        for (place, ghost) in queue.into_iter().enumerate() {
            if places[place / 32] >> (place % 32) & 1 == 1 {
                ghosts.push(ghost[0], ghost[1], weights.get(place).copied().unwrap_or(1));
            }
        }
        Some(ghosts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::fingerprint;

    /// Forgets the oldest: its note and weight.
    fn pop<T: Copy>(ghosts: &mut GhostQueue<T>) -> Option<(T, u32)> {
        let (before, mut last) = (ghosts.weight(), None);
        ghosts.forget_while(|weight, note| {
            let goes = weight == before;
            last = if goes { Some(note) } else { last };
            goes
        });
        last.filter(|_| ghosts.weight() < before).map(|note| (note, (before - ghosts.weight()) as u32))
    }

    #[test]
    fn a_successor_remembers_the_same() {
        for heaviest in [1, 9] {
            let mut ghosts = GhostQueue::new();
            ghosts.first = NOWHERE - 5000;
            for n in 0..3000u32 {
                let folded = fold(fingerprint(u64::from(n) * 7 % 400));
                if n % 4 == 0 {
                    ghosts.take(folded);
                } else {
                    ghosts.push(folded, n, 1 + n % heaviest);
                }
            }
            let mut memo = Memo::new(1);
            ghosts.write(&mut memo);
            let bytes = memo.into_bytes();
            let mut memo = Recollection::of(&bytes, 1).unwrap();
            let mut other = GhostQueue::read(&mut memo).unwrap();
            assert!(memo.is_done());
            assert!(ghosts.len() > 100);
            while !ghosts.is_empty() {
                assert_eq!((ghosts.len(), ghosts.weight()), (other.len(), other.weight()));
                assert_eq!(pop(&mut ghosts), pop(&mut other));
            }
            for length in 4..bytes.len() {
                assert!(GhostQueue::read(&mut Recollection::of(&bytes[..length], 1).unwrap()).is_none());
            }
        }
    }

    /// Against a plain list of fingerprint, note and weight.
    #[test]
    fn equals_a_plain_list() {
        for (bound, keys, heaviest) in [(5, 20, 1), (200, 500, 1), (200, 10_000, 1), (100, 300, 9)] {
            let (mut ghosts, mut model) = (GhostQueue::new(), Vec::<(u32, u64, u32)>::new());
            ghosts.first = NOWHERE - 5000;
            for n in 0..20_000u64 {
                let random = fingerprint(n);
                let folded = fold(fingerprint(random % keys));
                let at = model.iter().position(|ghost| ghost.0 == folded);
                if random >> 62 == 0 {
                    let taken = at.map(|at| model.remove(at)).map(|ghost| (ghost.1, ghost.2));
                    assert_eq!(ghosts.take(folded), taken, "step {n}");
                } else {
                    at.map(|at| model.remove(at));
                    let weight = 1 + (random >> 32) as u32 % heaviest;
                    model.push((folded, n, weight));
                    ghosts.push(folded, n, weight);
                }
                while model.len() > bound {
                    let (_, note, weight) = model.remove(0);
                    assert_eq!(pop(&mut ghosts), Some((note, weight)), "step {n}");
                }
                let weight = model.iter().map(|ghost| u64::from(ghost.2)).sum::<u64>();
                assert_eq!((ghosts.len(), ghosts.weight()), (model.len(), weight), "step {n}");
                assert!(ghosts.queue.len() <= 2 * ghosts.len() + 32, "holes are closed");
            }
            assert!(ghosts.first < NOWHERE / 2, "and positions begin anew before they run out");
        }
    }
}
