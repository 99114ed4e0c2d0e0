//! One value a slot.

use alloc::vec::Vec;

use crate::{Limits, Slot};

/// An array over slots that grows as they come. Where the host says how many residents to expect it takes room for them
/// all early on: a module's memory never shrinks, so what an array that moves leaves behind is lost, and room that
/// nobody has written to costs nothing.
#[derive(Clone, Debug)]
pub struct BySlot<T> {
    values: Vec<T>,
    expected: usize,
}

/// An array of more values than this moves to where there is room for all that are expected,
pub(super) const LEAPS_FROM: usize = 1 << 14;
/// or for so many times as many as there are, if that is less: the hint may be far from what comes.
pub(super) const LEAP: usize = 256;

impl<T: Copy + Default> BySlot<T> {
    /// No values.
    pub fn new(limits: &Limits) -> Self {
        BySlot { values: Vec::new(), expected: limits.expected.unwrap_or(0) as usize }
    }

    /// The value of a slot that was set before.
    #[inline]
    pub fn get(&self, slot: Slot) -> T {
        self.values[slot as usize]
    }

    /// Sets the value of a slot.
    #[inline]
    pub fn set(&mut self, slot: Slot, value: T) {
        let at = slot as usize;
        if at >= self.values.len() {
            self.grow(at);
        }
        self.values[at] = value;
    }

    // Inlined into each `set`, it would make a large function of a small one, which a component calls.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, at: usize) {
        if at >= self.values.capacity() {
            // The host may give out more slots than it has residents: two batches, each at most a 64th of them.
            let all = self.expected + self.expected / 32 + 16;
            let doubled = (2 * at).max(64);
            let room = match at {
                ..LEAPS_FROM => doubled.min(all),
                _ => all.min(LEAP * at),
            };
            let room = if room > at { room } else { doubled };
            self.values.reserve_exact(room - self.values.len());
        }
        self.values.resize(at + 1, T::default());
    }

    /// All values, those of slots that are not in use too.
    #[inline]
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// All values, those of slots that are not in use too.
    #[inline]
    pub fn values_mut(&mut self) -> &mut [T] {
        &mut self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rooms that an array has on its way to so many values.
    fn rooms(expected: Option<u32>, values: u32) -> Vec<usize> {
        let mut array = BySlot::new(&Limits { expected, ..Limits::entries(1) });
        let mut rooms = Vec::new();
        for slot in 0..values {
            array.set(slot, slot);
            assert_eq!(array.values().len(), slot as usize + 1);
            rooms.push(array.values.capacity());
        }
        rooms.dedup();
        assert!((0..values).all(|slot| array.get(slot) == slot));
        rooms
    }

    #[test]
    fn takes_room_for_all_that_are_expected() {
        assert_eq!(rooms(Some(100), 104), [64, 119]);
        let rooms = rooms(Some(200_000), 200_500);
        assert_eq!(rooms.last(), Some(&206_266));
        assert!(rooms[..rooms.len() - 1].iter().sum::<usize>() < 50_000, "what it leaves behind: {rooms:?}");
    }

    #[test]
    fn grows_by_the_values_where_the_hint_is_far_from_them() {
        assert_eq!(rooms(None, 200), [16, 64, 128, 256]);
        assert_eq!(rooms(Some(10), 100), [26, 64, 128]);
        assert!(rooms(Some(u32::MAX), 20_000).iter().all(|&room| room <= 256 * 20_000));
    }
}
