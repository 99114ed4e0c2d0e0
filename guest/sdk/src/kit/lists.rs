//! Doubly linked lists over slots.

use crate::{Limits, Slot};

use super::BySlot;

/// The end of a list, and "in no list".
const NONE: u32 = u32::MAX;

/// `N` doubly linked lists over slots: a slot is in at most one of them. 8 bytes a slot, and a byte for which list when
/// `N` is more than 1. Every operation takes constant time.
#[derive(Clone, Debug)]
pub struct Lists<const N: usize> {
    /// Previous and next, side by side: a removal touches one line a slot.
    links: BySlot<[u32; 2]>,
    /// Which list a slot is in; left empty when there is but one.
    list_of: BySlot<u8>,
    heads: [u32; N],
    tails: [u32; N],
    lens: [u32; N],
}

impl<const N: usize> Lists<N> {
    /// Empty lists.
    pub fn new(limits: &Limits) -> Self {
        Lists {
            links: BySlot::new(limits),
            list_of: BySlot::new(limits),
            heads: [NONE; N],
            tails: [NONE; N],
            lens: [0; N],
        }
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
        let [_, next] = self.links.get(slot);
        (next != NONE).then_some(next)
    }

    /// The one before `slot` in its list.
    #[inline]
    pub fn previous(&self, slot: Slot) -> Option<Slot> {
        let [previous, _] = self.links.get(slot);
        (previous != NONE).then_some(previous)
    }

    /// The list that a slot is in. The slot must be in one.
    #[inline]
    pub fn list_of(&self, slot: Slot) -> usize {
        if N == 1 { 0 } else { usize::from(self.list_of.get(slot)) }
    }

    /// What a slot is linked with.
    #[inline]
    fn links_mut(&mut self, slot: Slot) -> &mut [u32; 2] {
        &mut self.links.values_mut()[slot as usize]
    }

    #[inline]
    fn put(&mut self, list: usize, slot: Slot, links: [u32; 2]) {
        self.links.set(slot, links);
        if N > 1 {
            self.list_of.set(slot, list as u8);
        }
        self.lens[list] += 1;
    }

    /// Puts a slot that is in no list at the end of one.
    #[inline]
    pub fn push_back(&mut self, list: usize, slot: Slot) {
        let last = self.tails[list];
        self.put(list, slot, [last, NONE]);
        match last {
            NONE => self.heads[list] = slot,
            last => self.links_mut(last)[1] = slot,
        }
        self.tails[list] = slot;
    }

    /// Puts a slot that is in no list at the beginning of one.
    #[inline]
    pub fn push_front(&mut self, list: usize, slot: Slot) {
        let first = self.heads[list];
        self.put(list, slot, [NONE, first]);
        match first {
            NONE => self.tails[list] = slot,
            first => self.links_mut(first)[0] = slot,
        }
        self.heads[list] = slot;
    }

    /// Takes a slot out of the list that it is in.
    #[inline]
    pub fn remove(&mut self, slot: Slot) {
        let list = self.list_of(slot);
        self.unlink(list, slot);
        self.lens[list] -= 1;
    }

    #[inline]
    fn unlink(&mut self, list: usize, slot: Slot) {
        let [previous, next] = self.links.get(slot);
        match previous {
            NONE => self.heads[list] = next,
            previous => self.links_mut(previous)[1] = next,
        }
        match next {
            NONE => self.tails[list] = previous,
            next => self.links_mut(next)[0] = previous,
        }
    }

    /// Takes the first of a list.
    #[inline]
    pub fn pop_front(&mut self, list: usize) -> Option<Slot> {
        let first = self.front(list)?;
        let [_, next] = self.links.get(first);
        self.heads[list] = next;
        match next {
            NONE => self.tails[list] = NONE,
            next => self.links_mut(next)[0] = NONE,
        }
        self.lens[list] -= 1;
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
        let last = self.tails[list];
        if last == slot {
            return;
        }
        let from = self.list_of(slot);
        if from != list {
            self.remove(slot);
            self.push_back(list, slot);
            return;
        }
        // Not the last, so there is one after it, and one that was the last.
        self.unlink(list, slot);
        *self.links_mut(slot) = [last, NONE];
        self.links_mut(last)[1] = slot;
        self.tails[list] = slot;
    }

    /// The slots of a list from first to last.
    pub fn iter(&self, list: usize) -> impl Iterator<Item = Slot> + '_ {
        core::iter::successors(self.front(list), |&slot| self.next(slot))
    }
}
