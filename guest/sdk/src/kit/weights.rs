//! What the residents weigh.

use alloc::vec::Vec;

use crate::{Limits, Slot};

/// The weight of the residents against the capacity. While every weight is 1 it costs nothing an entry; after that,
/// 4 bytes.
#[derive(Clone, Debug)]
pub struct Weights {
    capacity: u64,
    total: u64,
    /// By slot; a slot beyond the end weighs 1.
    by_slot: Vec<u32>,
}

impl Weights {
    /// No residents.
    pub fn new(limits: &Limits) -> Self {
        Weights { capacity: limits.capacity, total: 0, by_slot: Vec::new() }
    }

    /// The weight that the residents may have.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The weight that they have.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether one more of this weight fits.
    #[inline]
    pub fn fits(&self, weight: u32) -> bool {
        self.total + u64::from(weight) <= self.capacity
    }

    /// The weight of a resident.
    #[inline]
    pub fn get(&self, slot: Slot) -> u32 {
        self.by_slot.get(slot as usize).copied().unwrap_or(1)
    }

    /// A resident comes.
    #[inline]
    pub fn add(&mut self, slot: Slot, weight: u32) {
        self.total += u64::from(weight);
        let at = slot as usize;
        if at < self.by_slot.len() {
            self.by_slot[at] = weight;
        } else if weight != 1 {
            self.grow(at, weight);
        }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, at: usize, weight: u32) {
        self.by_slot.resize(at + 1, 1);
        self.by_slot[at] = weight;
    }

    /// A resident goes; answers with its weight.
    #[inline]
    pub fn remove(&mut self, slot: Slot) -> u32 {
        let weight = self.get(slot);
        self.total -= u64::from(weight);
        weight
    }
}
