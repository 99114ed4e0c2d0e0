//! Residents in several lists, with the weight of each.

use crate::{Limits, Slot};

use super::{Lists, Weights};

/// `N` [`Lists`] over the residents, the [`Weights`] of these, and what each list weighs together. A slot is in exactly
/// one list from [`Self::push_back`] to [`Self::remove`].
#[derive(Clone, Debug)]
pub struct Segments<const N: usize> {
    lists: Lists<N>,
    weights: Weights,
    loads: [u64; N],
}

impl<const N: usize> Segments<N> {
    /// No residents.
    pub fn new(limits: &Limits) -> Self {
        Segments { lists: Lists::new(limits), weights: Weights::new(limits), loads: [0; N] }
    }

    /// The weight that the residents may have.
    #[inline]
    pub fn capacity(&self) -> u64 {
        self.weights.capacity()
    }

    /// The weight that they have.
    #[inline]
    pub fn total(&self) -> u64 {
        self.weights.total()
    }

    /// The weight of a list.
    #[inline]
    pub fn load(&self, list: usize) -> u64 {
        self.loads[list]
    }

    /// The weight of a resident.
    #[inline]
    pub fn weight(&self, slot: Slot) -> u32 {
        self.weights.get(slot)
    }

    /// Whether one more of this weight fits.
    #[inline]
    pub fn fits(&self, weight: u32) -> bool {
        self.weights.fits(weight)
    }

    /// The lists, to look at.
    #[inline]
    pub fn lists(&self) -> &Lists<N> {
        &self.lists
    }

    /// The list that a resident is in.
    #[inline]
    pub fn list_of(&self, slot: Slot) -> usize {
        self.lists.list_of(slot)
    }

    /// The first of a list.
    #[inline]
    pub fn front(&self, list: usize) -> Option<Slot> {
        self.lists.front(list)
    }

    /// A resident comes, to the end of a list.
    #[inline]
    pub fn push_back(&mut self, list: usize, slot: Slot, weight: u32) {
        self.weights.add(slot, weight);
        self.loads[list] += u64::from(weight);
        self.lists.push_back(list, slot);
    }

    /// A resident comes, to the beginning of a list.
    #[inline]
    pub fn push_front(&mut self, list: usize, slot: Slot, weight: u32) {
        self.weights.add(slot, weight);
        self.loads[list] += u64::from(weight);
        self.lists.push_front(list, slot);
    }

    /// A resident goes; answers with its weight.
    #[inline]
    pub fn remove(&mut self, slot: Slot) -> u32 {
        let list = self.lists.list_of(slot);
        let weight = self.weights.remove(slot);
        self.loads[list] -= u64::from(weight);
        self.lists.remove(slot);
        weight
    }

    /// The first of a list goes; answers with it and its weight.
    #[inline]
    pub fn pop_front(&mut self, list: usize) -> Option<(Slot, u32)> {
        let first = self.lists.pop_front(list)?;
        let weight = self.weights.remove(first);
        self.loads[list] -= u64::from(weight);
        Some((first, weight))
    }

    /// Moves a resident to the end of a list, from whichever it is in.
    #[inline]
    pub fn move_to_back(&mut self, list: usize, slot: Slot) {
        let from = self.lists.list_of(slot);
        if from != list {
            let weight = u64::from(self.weights.get(slot));
            self.loads[from] -= weight;
            self.loads[list] += weight;
        }
        self.lists.move_to_back(list, slot);
    }

    /// Moves the first of a list to the end of another.
    #[inline]
    pub fn shift(&mut self, from: usize, to: usize) -> Option<Slot> {
        let first = self.lists.pop_front(from)?;
        let weight = u64::from(self.weights.get(first));
        self.loads[from] -= weight;
        self.loads[to] += weight;
        self.lists.push_back(to, first);
        Some(first)
    }

    /// A resident has another weight now, and keeps its place.
    pub fn reweigh(&mut self, slot: Slot, weight: u32) {
        let list = self.lists.list_of(slot);
        let old = self.weights.remove(slot);
        self.weights.add(slot, weight);
        self.loads[list] = self.loads[list] - u64::from(old) + u64::from(weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::fingerprint;

    #[test]
    fn loads_are_the_sums_of_the_weights() {
        let mut segments = Segments::<3>::new(&Limits::entries(100));
        let mut weights = [None; 20];
        for n in 0..5000 {
            let random = fingerprint(n);
            let slot = (random % 20) as Slot;
            let list = (random >> 20) as usize % 3;
            let weight = (random >> 40) as u32 % 5 + 1;
            match (&mut weights[slot as usize], random >> 62) {
                (none @ None, _) => {
                    *none = Some((list, weight));
                    if random >> 63 == 0 {
                        segments.push_back(list, slot, weight);
                    } else {
                        segments.push_front(list, slot, weight);
                    }
                }
                (Some((of, _)), 0) => {
                    *of = list;
                    segments.move_to_back(list, slot);
                }
                (Some((_, of)), 1) => {
                    *of = weight;
                    segments.reweigh(slot, weight);
                }
                (some, 2) => {
                    let (list, weight) = some.take().expect("is some");
                    assert_eq!((segments.list_of(slot), segments.remove(slot)), (list, weight));
                }
                (Some((from, _)), _) => {
                    let from = *from;
                    let first = segments.shift(from, list).expect("has one");
                    weights[first as usize].as_mut().expect("is in").0 = list;
                }
            }
            for list in 0..3 {
                let load = weights.iter().flatten().filter(|w| w.0 == list).map(|w| u64::from(w.1)).sum::<u64>();
                assert_eq!(segments.load(list), load, "step {n}");
            }
            assert_eq!(segments.total(), (0..3).map(|list| segments.load(list)).sum::<u64>());
        }
    }
}
