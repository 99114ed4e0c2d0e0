//! What is known of the copies in tier 0, beside the table of their values.
//!
//! A hit reads key, value and a word. What else is known of a copy is reached by a pointer, which no hit follows: with it
//! in the table, fewer entries would fit into the processor's caches, and many would lie across two lines.

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::near::Copy;
use crate::cache::Place;
use crate::segment::{Array, Zeroable};

/// The copy of each entry, by its place. One whose entry left stays until its place is taken again.
pub(super) struct Copies {
    shards: Box<[Array<Pointer>]>,
}

/// Null, or from [`Arc::into_raw`], with a count of its own.
struct Pointer(AtomicPtr<Copy>);

// SAFETY: all-zero bytes are a null pointer.
unsafe impl Zeroable for Pointer {}

impl Copies {
    pub(super) fn new(shards: usize) -> Self {
        Copies { shards: (0..shards).map(|_| Array::new(0)).collect() }
    }

    /// Puts the copy of an entry that comes in at a place.
    ///
    /// # Safety
    /// The exclusive lock is held under which the entry can be read.
    pub(super) unsafe fn put(&self, place: Place, copy: Arc<Copy>) {
        let array = &self.shards[place.shard];
        array.ensure(place.slot as usize);
        if let Some(Pointer(pointer)) = array.get(place.slot as usize) {
            let last = pointer.swap(Arc::into_raw(copy).cast_mut(), Ordering::AcqRel);
            if !last.is_null() {
                // SAFETY: it came from `Arc::into_raw`, and its count goes with the pointer, which nobody reads any more:
                // readers hold the lock.
                drop(unsafe { Arc::from_raw(last) });
            }
        }
    }

    /// Calls `f` with the copy of the entry at a place, if one was put there.
    ///
    /// # Safety
    /// The lock is held, shared or exclusive, under which the entry can be read.
    pub(super) unsafe fn at<R>(&self, place: Place, f: impl FnOnce(&Arc<Copy>) -> R) -> Option<R> {
        let Pointer(pointer) = self.shards[place.shard].get(place.slot as usize)?;
        let copy = pointer.load(Ordering::Acquire);
        if copy.is_null() {
            return None;
        }
        // SAFETY: it came from `Arc::into_raw`; under the lock nobody takes it away, and the count that goes with it stays,
        // as this handle is not dropped.
        let copy = std::mem::ManuallyDrop::new(unsafe { Arc::from_raw(copy) });
        Some(f(&copy))
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for array in &mut self.shards {
            let mut slot = 0;
            while let Some(Pointer(pointer)) = array.get_mut(slot) {
                let copy = std::mem::replace(pointer.get_mut(), std::ptr::null_mut());
                if !copy.is_null() {
                    // SAFETY: it came from `Arc::into_raw`, and nobody else is here.
                    drop(unsafe { Arc::from_raw(copy) });
                }
                slot += 1;
            }
        }
    }
}
