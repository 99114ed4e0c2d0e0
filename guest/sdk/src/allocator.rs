//! Memory for modules that are alone with this SDK: dlmalloc, and before it an arena for what the host sends.
//!
//! The host asks for room for each list of a call, and the generated code frees them all before the call returns. In the
//! arena both are an addition: a block is what comes next, and when the last block is freed all begins anew.
//! What does not fit there, and all that policies themselves keep, is dlmalloc's.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::{Cell, UnsafeCell};

use dlmalloc::GlobalDlmalloc;

/// The lists of a busy shard's batch: 64 arrivals of 12 bytes each, and some hundred to a thousand touches.
const ROOM: usize = 8 << 10;

#[repr(align(16))]
struct Arena {
    bytes: UnsafeCell<[u8; ROOM]>,
    /// What is given out so far, and how many blocks of it were not freed.
    top: Cell<usize>,
    live: Cell<usize>,
}

// SAFETY: a module has one thread.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena { bytes: UnsafeCell::new([0; ROOM]), top: Cell::new(0), live: Cell::new(0) };

impl Arena {
    #[inline]
    fn alloc(&self, layout: Layout) -> Option<*mut u8> {
        if layout.align() > 16 {
            return None;
        }
        let at = self.top.get().next_multiple_of(layout.align());
        let end = at.checked_add(layout.size()).filter(|&end| end <= ROOM)?;
        self.top.set(end);
        self.live.set(self.live.get() + 1);
        // The arena is aligned to 16 bytes, and so this is to `align`.
        Some(self.bytes.get().cast::<u8>().wrapping_add(at))
    }

    #[inline]
    fn holds(&self, block: *mut u8) -> bool {
        (block as usize).wrapping_sub(self.bytes.get() as usize) < ROOM
    }

    #[inline]
    fn free(&self) {
        let live = self.live.get() - 1;
        self.live.set(live);
        if live == 0 {
            self.top.set(0);
        }
    }
}

/// The allocator of a standalone module.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: dlmalloc keeps the promises for its blocks. A block of the arena is aligned, of its size, and given to nobody
// else until it was freed: `top` only grows while any is live.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises.
        unsafe { GlobalDlmalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises.
        unsafe { GlobalDlmalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if ARENA.holds(block) {
            ARENA.free();
        } else {
            // SAFETY: the caller's promises; not of the arena, so dlmalloc's.
            unsafe { GlobalDlmalloc.dealloc(block, layout) }
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !ARENA.holds(block) {
            // SAFETY: the caller's promises; not of the arena, so dlmalloc's.
            return unsafe { GlobalDlmalloc.realloc(block, layout, size) };
        }
        // SAFETY: `size` is not 0, the caller's promise; both blocks have so many bytes, and are not the same.
        unsafe {
            let moved = GlobalDlmalloc.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                core::ptr::copy_nonoverlapping(block, moved, size.min(layout.size()));
                ARENA.free();
            }
            moved
        }
    }
}

/// The canonical ABI's `cabi_realloc`.
///
/// # Safety
/// `old` is null or a block of `old_size` bytes and alignment `align` from this function; `align` is a power of two.
pub unsafe fn reallocate(old: *mut u8, old_size: usize, align: usize, size: usize) -> *mut u8 {
    if size == 0 {
        return align as *mut u8;
    }
    // SAFETY: the caller's promise, and `size` is not 0.
    let block = unsafe {
        match old_size {
            0 => {
                let layout = Layout::from_size_align_unchecked(size, align);
                ARENA.alloc(layout).unwrap_or_else(|| Allocator.alloc(layout))
            }
            old_size => Allocator.realloc(old, Layout::from_size_align_unchecked(old_size, align), size),
        }
    };
    if block.is_null() {
        core::arch::wasm32::unreachable();
    }
    block
}
