//! Counts what is allocated, where it is asked to. The benchmarks that measure time don't ask: all they pay is one
//! relaxed load of a flag that never changes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ON: AtomicBool = AtomicBool::new(false);
static ALLOCATED: AtomicI64 = AtomicI64::new(0);

/// From now on, count.
pub fn start() {
    ON.store(true, Relaxed);
}

/// Bytes allocated less bytes freed since [`start`].
pub fn allocated() -> i64 {
    ALLOCATED.load(Relaxed)
}

struct Counting;

fn count(bytes: usize, sign: i64) {
    if ON.load(Relaxed) {
        ALLOCATED.fetch_add(sign * bytes as i64, Relaxed);
    }
}

// SAFETY: every call is passed on to `System` as it came, and `System` keeps the contract of `GlobalAlloc`. Counting
// neither allocates nor panics (`sign * bytes` is within a layout's bound of `isize::MAX`; atomic addition wraps).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller keeps `alloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: as above. Passed on and not emulated: zeroed pages that nobody touches must not become resident.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(size, 1);
        // SAFETY: `pointer` came from `System` by one of these functions, with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: as for `realloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
