//! Doubly linked lists over slots.

use alloc::vec::Vec;

use crate::{Limits, Slot};

/// The end of a list, and "in no list".
const NONE: u32 = u32::MAX;

/// `N` doubly linked lists over slots: a slot is in at most one of them. 8 bytes a slot, and a byte for which list when
/// `N` is more than 1. Every operation takes constant time.
#[derive(Clone, Debug)]
pub struct Lists<const N: usize> {
    /// Previous and next, side by side: a removal touches one line a slot.
    links: Vec<[u32; 2]>,
    /// Which list a slot is in; left empty when there is but one.
    list_of: Vec<u8>,
    heads: [u32; N],
    tails: [u32; N],
    lens: [u32; N],
}

impl<const N: usize> Lists<N> {
    /// Empty lists, with room for the residents that are expected.
    pub fn new(limits: &Limits) -> Self {
        let room = limits.expected.unwrap_or(0).min(1 << 16) as usize;
        Lists { links: Vec::with_capacity(room), list_of: Vec::new(), heads: [NONE; N], tails: [NONE; N], lens: [0; N] }
    }

    /// How many are in a list.
    pub fn len(&self, list: usize) -> u32 {
        self.lens[list]
    }

    /// Whether a list is empty.
    pub fn is_empty(&self, list: usize) -> bool {
        self.lens[list] == 0
    }

    /// The first of a list.
    #[inline]
    pub fn front(&self, list: usize) -> Option<Slot> {
        (self.heads[list] != NONE).then_some(self.heads[list])
    }

    /// The last of a list.
    #[inline]
    pub fn back(&self, list: usize) -> Option<Slot> {
        (self.tails[list] != NONE).then_some(self.tails[list])
    }

    /// The one after `slot` in its list.
    #[inline]
    pub fn next(&self, slot: Slot) -> Option<Slot> {
        let next = self.links[slot as usize][1];
        (next != NONE).then_some(next)
    }

    /// The one before `slot` in its list.
    #[inline]
    pub fn previous(&self, slot: Slot) -> Option<Slot> {
        let previous = self.links[slot as usize][0];
        (previous != NONE).then_some(previous)
    }

    /// The list that a slot is in. The slot must be in one.
    #[inline]
    pub fn list_of(&self, slot: Slot) -> usize {
        if N == 1 { 0 } else { usize::from(self.list_of[slot as usize]) }
    }

    fn make_room(&mut self, slot: Slot) {
        let at = slot as usize;
        if at >= self.links.len() {
            self.links.resize(at + 1, [NONE; 2]);
            if N > 1 {
                self.list_of.resize(at + 1, 0);
            }
        }
    }

    /// Puts a slot that is in no list at the end of one.
    #[inline]
    pub fn push_back(&mut self, list: usize, slot: Slot) {
        self.make_room(slot);
        let last = self.tails[list];
        self.links[slot as usize] = [last, NONE];
        if N > 1 {
            self.list_of[slot as usize] = list as u8;
        }
        match last {
            NONE => self.heads[list] = slot,
            last => self.links[last as usize][1] = slot,
        }
        self.tails[list] = slot;
        self.lens[list] += 1;
    }

    /// Puts a slot that is in no list at the beginning of one.
    #[inline]
    pub fn push_front(&mut self, list: usize, slot: Slot) {
        self.make_room(slot);
        let first = self.heads[list];
        self.links[slot as usize] = [NONE, first];
        if N > 1 {
            self.list_of[slot as usize] = list as u8;
        }
        match first {
            NONE => self.tails[list] = slot,
            first => self.links[first as usize][0] = slot,
        }
        self.heads[list] = slot;
        self.lens[list] += 1;
    }

    /// Takes a slot out of the list that it is in.
    #[inline]
    pub fn remove(&mut self, slot: Slot) {
        let list = self.list_of(slot);
        let [previous, next] = self.links[slot as usize];
        match previous {
            NONE => self.heads[list] = next,
            previous => self.links[previous as usize][1] = next,
        }
        match next {
            NONE => self.tails[list] = previous,
            next => self.links[next as usize][0] = previous,
        }
        self.lens[list] -= 1;
    }

    /// Takes the first of a list.
    #[inline]
    pub fn pop_front(&mut self, list: usize) -> Option<Slot> {
        let first = self.front(list)?;
        self.remove(first);
        Some(first)
    }

    /// Takes the last of a list.
    #[inline]
    pub fn pop_back(&mut self, list: usize) -> Option<Slot> {
        let last = self.back(list)?;
        self.remove(last);
        Some(last)
    }

    /// Moves a slot to the end of a list, from whichever it is in.
    #[inline]
    pub fn move_to_back(&mut self, list: usize, slot: Slot) {
        if self.tails[list] != slot {
            self.remove(slot);
            self.push_back(list, slot);
        }
    }

    /// The slots of a list from first to last.
    pub fn iter(&self, list: usize) -> impl Iterator<Item = Slot> + '_ {
        core::iter::successors(self.front(list), |&slot| self.next(slot))
    }
}
