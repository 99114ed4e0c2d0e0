//! A fixed array of zeroes, in huge pages where it is large.
//!
//! A hit touches two random places in arrays of many megabytes. With pages of 4 KiB the processor then looks the pages up
//! in memory as well, which under virtualisation costs as much as the access itself. So large segments are aligned to
//! 2 MiB, and the kernel is asked to back them with pages of that size. Memory is still taken only as it is touched.

use std::ops::{Deref, DerefMut};

/// A type of which all-zero bytes are a value, and which needs no dropping but what its owner does by hand.
///
/// # Safety
/// All-zero bytes must be a valid value.
pub(crate) unsafe trait Zeroable {}

/// See the module's documentation.
pub(crate) struct Segment<T> {
    memory: Memory<T>,
}

enum Memory<T> {
    Boxed(Box<[T]>),
    #[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
    Mapped(linux::Mapping<T>),
}

impl<T: Zeroable> Segment<T> {
    /// `len` zeroes.
    pub(crate) fn new(len: usize) -> Self {
        #[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
        if let Some(mapping) = linux::Mapping::new(len) {
            return Segment { memory: Memory::Mapped(mapping) };
        }
        // SAFETY: all-zero bytes are a value of `T`, as `Zeroable` promises.
        let boxed = unsafe { Box::<[T]>::new_zeroed_slice(len).assume_init() };
        Segment { memory: Memory::Boxed(boxed) }
    }
}

impl<T> Deref for Segment<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match &self.memory {
            Memory::Boxed(boxed) => boxed,
            #[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
            Memory::Mapped(mapping) => mapping,
        }
    }
}

impl<T> DerefMut for Segment<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            Memory::Boxed(boxed) => boxed,
            #[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
            Memory::Mapped(mapping) => mapping,
        }
    }
}

#[cfg(all(target_os = "linux", not(miri), not(shuttle)))]
mod linux {
    use std::ffi::c_void;
    use std::ops::{Deref, DerefMut};
    use std::ptr::NonNull;

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    use super::Zeroable;

    const HUGE_PAGE: usize = 2 << 20;

    /// Pages of its own, aligned to huge ones.
    pub(super) struct Mapping<T> {
        /// What was mapped, and how much of it.
        mapped: NonNull<c_void>,
        bytes: usize,
        first: NonNull<T>,
        len: usize,
    }

    // SAFETY: a mapping owns its `T`s, as a box does.
    unsafe impl<T: Send> Send for Mapping<T> {}
    // SAFETY: as above.
    unsafe impl<T: Sync> Sync for Mapping<T> {}

    impl<T: Zeroable> Mapping<T> {
        /// `None` where it is not worth it, or the system does not give it.
        pub(super) fn new(len: usize) -> Option<Self> {
            let size = len.checked_mul(size_of::<T>())?;
            if size < HUGE_PAGE || align_of::<T>() > HUGE_PAGE {
                return None;
            }
            // What is mapped beyond, to align, is never touched, so it takes no memory.
            let bytes = size.checked_add(HUGE_PAGE)?;
            let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: a new anonymous mapping where the system likes.
            let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, flags.0, flags.1) }.ok()?;
            let padding = mapped.addr().wrapping_neg() % HUGE_PAGE;
            // SAFETY: `padding` is less than `HUGE_PAGE`, so `size` bytes from there are within the mapping.
            let first = unsafe { mapped.byte_add(padding) };
            // SAFETY: our own pages. Advice: if it is not taken, nothing is lost but speed.
            let _ = unsafe { madvise(first, size, Advice::LinuxHugepage) };
            Some(Mapping { mapped: NonNull::new(mapped)?, bytes, first: NonNull::new(first.cast())?, len })
        }
    }

    impl<T> Drop for Mapping<T> {
        fn drop(&mut self) {
            // SAFETY: what `new` mapped; nobody holds a reference into it any more.
            let _ = unsafe { munmap(self.mapped.as_ptr(), self.bytes) };
        }
    }

    impl<T> Deref for Mapping<T> {
        type Target = [T];

        #[inline]
        fn deref(&self) -> &[T] {
            // SAFETY: `len` aligned zeroes from the system, which are values of `T`, and ours.
            unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
        }
    }

    impl<T> DerefMut for Mapping<T> {
        fn deref_mut(&mut self) -> &mut [T] {
            // SAFETY: as above, and `&mut self` is the only way to it.
            unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
        }
    }
}
