//! One value a slot.

use alloc::vec::Vec;

use crate::Slot;

/// An array over slots that grows as they come.
#[derive(Clone, Debug, Default)]
pub struct BySlot<T>(Vec<T>);

impl<T: Copy + Default> BySlot<T> {
    /// No values.
    pub const fn new() -> Self {
        BySlot(Vec::new())
    }

    /// The value of a slot that was set before.
    #[inline]
    pub fn get(&self, slot: Slot) -> T {
        self.0[slot as usize]
    }

    /// Sets the value of a slot.
    #[inline]
    pub fn set(&mut self, slot: Slot, value: T) {
        let at = slot as usize;
        if at >= self.0.len() {
            self.0.resize(at + 1, T::default());
        }
        self.0[at] = value;
    }

    /// All values, those of slots that are not in use too.
    pub fn values(&self) -> &[T] {
        &self.0
    }

    /// All values, those of slots that are not in use too.
    pub fn values_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
