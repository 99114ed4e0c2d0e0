//! A fixed array of zeroes, in huge pages where it is large.
//!
//! A hit touches two random places in arrays of many megabytes. With pages of 4 KiB the processor then looks the pages up
//! in memory as well, which under virtualisation costs as much as the access itself. So large segments are aligned to
//! 2 MiB, and the kernel is asked to back them with pages of that size. Memory is still taken only as it is touched.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::sync::OnceLock;

/// A type of which all-zero bytes are a value, and which needs no dropping but what its owner does by hand.
///
/// # Safety
/// All-zero bytes must be a valid value, and its alignment at most that of a huge page.
pub(crate) unsafe trait Zeroable {}

/// See the module's documentation.
pub(crate) struct Segment<T> {
    first: NonNull<T>,
    len: usize,
    /// The mapping that the array lies in, if it has one of its own; else it came from a box.
    #[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
    mapping: Option<linux::Mapping>,
}

// SAFETY: a segment owns its `T`s, as a box does.
unsafe impl<T: Send> Send for Segment<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Segment<T> {}

impl<T: Zeroable> Segment<T> {
    /// `len` zeroes.
    pub(crate) fn new(len: usize) -> Self {
        #[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
        if let Some((mapping, first)) = linux::Mapping::new(len * size_of::<T>()) {
            return Segment { first: first.cast(), len, mapping: Some(mapping) };
        }
        // SAFETY: all-zero bytes are a value of `T`, as `Zeroable` promises.
        let boxed = unsafe { Box::<[T]>::new_zeroed_slice(len).assume_init() };
        let first = NonNull::from(Box::leak(boxed)).cast();
        Segment {
            first,
            len,
            #[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
            mapping: None,
        }
    }
}

impl<T> Drop for Segment<T> {
    fn drop(&mut self) {
        #[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
        if self.mapping.is_some() {
            return;
        }
        let slice = std::ptr::slice_from_raw_parts_mut(self.first.as_ptr(), self.len);
        // SAFETY: `new` leaked this box, and nobody holds a reference into it any more.
        drop(unsafe { Box::from_raw(slice) });
    }
}

impl<T> Deref for Segment<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` aligned values of `T`: zeroes at first, which are such, as `Zeroable` promises; and ours.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Segment<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` is the only way to it.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

/// Segments in a directory, at most.
const SEGMENTS: usize = 32;

/// An array that grows by whole segments, so that its elements never move. Which indices lie in which segment is the
/// caller's rule.
pub(crate) struct Directory<T> {
    /// Where the element of index 0 would lie if it were in this segment: an element is found with one addition. Null
    /// until the segment is made.
    origins: [AtomicPtr<T>; SEGMENTS],
    segments: [OnceLock<Segment<T>>; SEGMENTS],
}

impl<T: Zeroable> Directory<T> {
    pub(crate) const fn new() -> Self {
        Directory {
            origins: [const { AtomicPtr::new(std::ptr::null_mut()) }; SEGMENTS],
            segments: [const { OnceLock::new() }; SEGMENTS],
        }
    }

    /// Makes a segment of `len` zeroes, the first of which has the index `start`, unless it is there.
    pub(crate) fn make(&self, segment: usize, start: usize, len: usize) {
        if self.is_made(segment) {
            return;
        }
        let made = self.segments[segment].get_or_init(|| Segment::new(len));
        self.origins[segment].store(made.first.as_ptr().wrapping_sub(start), Ordering::Release);
    }

    #[inline]
    pub(crate) fn is_made(&self, segment: usize) -> bool {
        self.origins.get(segment).is_none_or(|origin| !origin.load(Ordering::Acquire).is_null())
    }

    /// How many segments there can be.
    pub(crate) const fn room(&self) -> usize {
        SEGMENTS
    }

    /// The element of an index; `None` while the segment is not made.
    ///
    /// # Safety
    /// The index is one of that segment: at least the `start` and less than `start + len` of [`Self::make`].
    #[inline]
    pub(crate) unsafe fn get(&self, segment: usize, index: usize) -> Option<&T> {
        let origin = self.origins.get(segment)?.load(Ordering::Acquire);
        if origin.is_null() {
            return None;
        }
        // SAFETY: the segment was made before its origin was stored, and lives as long as `self`; the index is one of
        // it, so `origin + index` is the element: `start` was taken from the address and is added again.
        Some(unsafe { &*origin.wrapping_add(index) })
    }

    /// The segments that were made, in order.
    pub(crate) fn segments_mut(&mut self) -> impl Iterator<Item = &mut Segment<T>> {
        self.segments.iter_mut().filter_map(OnceLock::get_mut)
    }
}

#[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
mod linux {
    use std::ffi::c_void;
    use std::ptr::NonNull;

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    const HUGE_PAGE: usize = 2 << 20;

    /// Pages of their own.
    pub(super) struct Mapping {
        mapped: NonNull<c_void>,
        bytes: usize,
    }

    impl Mapping {
        /// Pages for `size` bytes, and where the first of these is, aligned to huge pages. `None` where it is not worth
        /// it, or the system does not give it.
        pub(super) fn new(size: usize) -> Option<(Self, NonNull<c_void>)> {
            if size < HUGE_PAGE {
                return None;
            }
            // What is mapped beyond, to align, is never touched, so it takes no memory.
            let bytes = size.checked_add(HUGE_PAGE)?;
            let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: a new anonymous mapping where the system likes.
            let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }.ok()?;
            let mapping = Mapping { mapped: NonNull::new(mapped)?, bytes };
            let padding = mapped.addr().wrapping_neg() % HUGE_PAGE;
            // SAFETY: `padding` is less than `HUGE_PAGE`, so `size` bytes from there are within the mapping.
            let first = unsafe { mapped.byte_add(padding) };
            // SAFETY: our own pages. It is advice: if it is not taken, nothing is lost but speed.
            let _ = unsafe { madvise(first, size, Advice::LinuxHugepage) };
            Some((mapping, NonNull::new(first)?))
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: what `new` mapped; the segment that it was for is gone.
            let _ = unsafe { munmap(self.mapped.as_ptr(), self.bytes) };
        }
    }
}
