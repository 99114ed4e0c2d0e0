//! A fixed array of zeroes, in huge pages where it is large.
//!
//! A hit touches two random places in arrays of many megabytes. With pages of 4 KiB the processor then looks the pages up
//! in memory as well, which under virtualisation costs as much as the access itself. So large segments are aligned to
//! 2 MiB, and the kernel is asked to back them with pages of that size. Memory is still taken only as it is touched, and
//! the beginning of an array only asks for a huge page where that is a quarter of it at most: a cache with much room and
//! few entries takes little.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::sync::OnceLock;

const HUGE_PAGE: usize = 2 << 20;

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
    /// `len` zeroes. Huge pages begin at least `small` bytes after the first.
    pub(crate) fn new(len: usize, small: usize) -> Self {
        #[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
        if let Some((mapping, first)) = linux::Mapping::new(len * size_of::<T>(), small) {
            return Segment { first: first.cast(), len, mapping: Some(mapping) };
        }
        // SAFETY: all-zero bytes are a value of `T`, as `Zeroable` promises.
        let boxed = unsafe { Box::<[T]>::new_zeroed_slice(len).assume_init() };
        let _ = small;
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

/// Elements of the first segment that an array makes beyond what it was given; each further one has twice as many.
const FIRST_BEYOND: usize = 64;
/// Segments beyond the first, at most: as many as any index of 32 bits leads to.
const SEGMENTS: usize = 32;

/// An array that grows by whole segments, so that its elements never move.
pub(crate) struct Array<T> {
    /// The elements that were to be expected. Found with one comparison, which is why an array is told how many.
    first: Segment<T>,
    /// By [`place`], for each segment beyond: where the element of place 0 would lie if it were in it, so that an element
    /// is found with one addition. Null until the segment is made.
    origins: [AtomicPtr<T>; SEGMENTS],
    beyond: [OnceLock<Segment<T>>; SEGMENTS],
}

/// The segment and the place of an element that is the `index`-th beyond the first segment: segment `i` has the places from
/// `FIRST_BEYOND << i` up to twice as many.
#[inline]
fn place(index: usize) -> (usize, usize) {
    let place = index + FIRST_BEYOND;
    ((place.ilog2() - FIRST_BEYOND.ilog2()) as usize, place)
}

impl<T: Zeroable> Array<T> {
    /// An array of `len` zeroes for now. They take memory as they are touched.
    pub(crate) fn new(len: usize) -> Self {
        Array {
            first: Segment::new(len, if len * size_of::<T>() < 4 * HUGE_PAGE { HUGE_PAGE } else { 0 }),
            origins: [const { AtomicPtr::new(std::ptr::null_mut()) }; SEGMENTS],
            beyond: [const { OnceLock::new() }; SEGMENTS],
        }
    }

    /// Makes sure that there is an element of this index, a number of 32 bits.
    #[inline]
    pub(crate) fn ensure(&self, index: usize) {
        if index >= self.first.len {
            self.ensure_beyond(index - self.first.len);
        }
    }

    fn ensure_beyond(&self, index: usize) {
        let (segment, _) = place(index);
        if self.origins[segment].load(Ordering::Acquire).is_null() {
            let start = FIRST_BEYOND << segment;
            let made = self.beyond[segment].get_or_init(|| Segment::new(start, 0));
            self.origins[segment].store(made.first.as_ptr().wrapping_sub(start), Ordering::Release);
        }
    }

    /// The element of an index; `None` while it is not made.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        if index < self.first.len {
            // SAFETY: the index is one of the first segment.
            return Some(unsafe { self.get_made(index) });
        }
        let (segment, _) = place(index - self.first.len);
        let is_made = self.origins.get(segment).is_some_and(|origin| !origin.load(Ordering::Acquire).is_null());
        // SAFETY: the segment of the index is made.
        is_made.then(|| unsafe { self.get_made(index) })
    }

    /// The element of an index that is made.
    ///
    /// # Safety
    /// [`Self::new`] or [`Self::ensure`] made it, before this.
    #[inline]
    pub(crate) unsafe fn get_made(&self, index: usize) -> &T {
        let element = if index < self.first.len {
            // SAFETY: the index is one of the segment.
            unsafe { self.first.first.as_ptr().add(index) }
        } else {
            let (segment, place) = place(index - self.first.len);
            debug_assert!(segment < SEGMENTS, "index {index} is not made");
            // SAFETY: a segment that was made is one of the array's.
            unsafe { self.origins.get_unchecked(segment) }.load(Ordering::Acquire).wrapping_add(place)
        };
        debug_assert!(!element.is_null(), "index {index} is not made");
        // SAFETY: beyond the first segment: it was made before its origin was stored, `start` was taken from its address,
        // and the place, which is at least that and less than twice as much, was added. Segments live as long as `self`,
        // and what lies in one is not at address 0, which the compiler does not see by itself.
        unsafe {
            std::hint::assert_unchecked(!element.is_null());
            &*element
        }
    }

    /// The elements from an index on that lie beside one another; none while that one is not made.
    pub(crate) fn run(&self, index: usize) -> &[T] {
        if index < self.first.len {
            return &self.first[index..];
        }
        let (segment, place) = place(index - self.first.len);
        let made = self.beyond.get(segment).and_then(OnceLock::get);
        made.map_or(&[], |made| &made[place - (FIRST_BEYOND << segment)..])
    }

    /// The element of an index; `None` while it is not made.
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        let first = self.first.len;
        if index < first {
            return self.first.get_mut(index);
        }
        let (segment, place) = place(index - first);
        self.beyond.get_mut(segment)?.get_mut()?.get_mut(place - (FIRST_BEYOND << segment))
    }
}

#[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
mod linux {
    use std::ffi::c_void;
    use std::ptr::NonNull;

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    use super::HUGE_PAGE;

    /// Pages of their own.
    pub(super) struct Mapping {
        mapped: NonNull<c_void>,
        bytes: usize,
    }

    impl Mapping {
        /// Pages for `size` bytes, and where the first of these is, aligned to huge pages. `None` where it is not worth
        /// it, or the system does not give it. The first `small` of them are not asked to be in huge pages.
        pub(super) fn new(size: usize, small: usize) -> Option<(Self, NonNull<c_void>)> {
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
            // SAFETY: what remains is within the `size` bytes.
            let (large, size) = unsafe { (first.byte_add(small.min(size)), size.saturating_sub(small)) };
            // SAFETY: our own pages, and `small` is whole pages. It is advice: if it is not taken, nothing is lost but speed.
            let _ = unsafe { madvise(large, size, Advice::LinuxHugepage) };
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
