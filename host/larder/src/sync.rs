//! The primitives that shared structures are built on, switched to shuttle's for its tests, where shuttle decides at each
//! of them which thread goes on. `tests/interleave` builds them so, and says how to run it.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Mutex, MutexGuard};
#[cfg(not(shuttle))]
pub(crate) use std::sync::{
    OnceLock,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

#[cfg(not(shuttle))]
use std::thread;
#[cfg(not(shuttle))]
pub(crate) use std::thread::ThreadId;

#[cfg(shuttle)]
use shuttle::thread;
#[cfg(shuttle)]
pub(crate) use shuttle::thread::ThreadId;
#[cfg(shuttle)]
pub(crate) use shuttle_shim::*;

#[cfg(test)]
pub(crate) use thread::spawn;

use std::sync::Arc;
use std::task::Wake;
use std::time::Duration;

/// The thread that asks.
#[cfg(not(shuttle))]
#[inline]
pub(crate) fn this_thread() -> ThreadId {
    thread_local! {
        // `thread::current` is a handle, whose count every call would raise and lower.
        static ID: std::cell::Cell<Option<ThreadId>> = const { std::cell::Cell::new(None) };
    }
    ID.get().unwrap_or_else(|| {
        let id = thread::current().id();
        ID.set(Some(id));
        id
    })
}

#[cfg(shuttle)]
pub(crate) fn this_thread() -> ThreadId {
    thread::current().id()
}

/// Lets other threads run.
pub(crate) fn give_way() {
    thread::yield_now();
}

/// As shuttle interleaves it; or for some rounds, as the machine does. `test` is told the round.
#[cfg(test)]
pub(crate) fn interleave(rounds: u64, test: impl Fn(u64) + Send + Sync + 'static) {
    #[cfg(shuttle)]
    {
        let round = std::sync::atomic::AtomicU64::new(0);
        shuttle::check_random(move || test(round.fetch_add(1, Ordering::SeqCst)), 100 * rounds as usize);
    }
    #[cfg(not(shuttle))]
    (0..if cfg!(miri) { rounds.min(10) } else { rounds }).for_each(test);
}

/// What a thread sleeps on. It is its own waker.
pub(crate) struct Parker {
    thread: thread::Thread,
    woken: AtomicU32,
}

impl Parker {
    /// This thread's.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Parker { thread: thread::current(), woken: AtomicU32::new(0) })
    }

    /// Sleeps until it is woken; not at all if it was since it slept last.
    pub(crate) fn park(&self) {
        while !self.was_woken() {
            thread::park();
        }
    }

    /// Sleeps for so long at most. Whether it was woken.
    #[cfg(not(shuttle))]
    pub(crate) fn park_for(&self, time: Duration) -> bool {
        let began = std::time::Instant::now();
        loop {
            if self.was_woken() {
                return true;
            }
            match time.checked_sub(began.elapsed()) {
                Some(left) if !left.is_zero() => thread::park_timeout(left),
                _ => return false,
            }
        }
    }

    /// Under shuttle any time may be over at once.
    #[cfg(shuttle)]
    pub(crate) fn park_for(&self, _: Duration) -> bool {
        thread::yield_now();
        self.was_woken()
    }

    fn was_woken(&self) -> bool {
        self.woken.swap(0, Ordering::SeqCst) != 0
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// parking_lot's interface over shuttle's types.
#[cfg(shuttle)]
mod shuttle_shim {
    pub(crate) use shuttle::sync::MutexGuard;
    pub(crate) use std::sync::OnceLock;
    pub(crate) use std::sync::atomic::Ordering;

    /// Numbers that are as std's in memory (tables are made of zeroes, which shuttle's own are not), and let shuttle
    /// switch threads before each operation. As with shuttle's, every ordering is the strictest.
    macro_rules! atomic {
        ($name:ident, $number:ty) => {
            #[derive(Debug, Default)]
            #[repr(transparent)]
            pub(crate) struct $name(std::sync::atomic::$name);

            #[allow(dead_code)]
            impl $name {
                pub(crate) const fn new(value: $number) -> Self {
                    $name(std::sync::atomic::$name::new(value))
                }
                pub(crate) fn load(&self, _: Ordering) -> $number {
                    shuttle::thread::yield_now();
                    self.0.load(Ordering::SeqCst)
                }
                pub(crate) fn store(&self, value: $number, _: Ordering) {
                    shuttle::thread::yield_now();
                    self.0.store(value, Ordering::SeqCst);
                }
                pub(crate) fn swap(&self, value: $number, _: Ordering) -> $number {
                    shuttle::thread::yield_now();
                    self.0.swap(value, Ordering::SeqCst)
                }
                pub(crate) fn compare_exchange(
                    &self,
                    current: $number,
                    new: $number,
                    _: Ordering,
                    _: Ordering,
                ) -> Result<$number, $number> {
                    shuttle::thread::yield_now();
                    self.0.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst)
                }
                pub(crate) fn fetch_add(&self, value: $number, _: Ordering) -> $number {
                    shuttle::thread::yield_now();
                    self.0.fetch_add(value, Ordering::SeqCst)
                }
                pub(crate) fn fetch_sub(&self, value: $number, _: Ordering) -> $number {
                    shuttle::thread::yield_now();
                    self.0.fetch_sub(value, Ordering::SeqCst)
                }
                pub(crate) fn fetch_or(&self, value: $number, _: Ordering) -> $number {
                    shuttle::thread::yield_now();
                    self.0.fetch_or(value, Ordering::SeqCst)
                }
                pub(crate) fn fetch_and(&self, value: $number, _: Ordering) -> $number {
                    shuttle::thread::yield_now();
                    self.0.fetch_and(value, Ordering::SeqCst)
                }
            }
        };
    }
    atomic!(AtomicU32, u32);
    atomic!(AtomicU64, u64);

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(shuttle::sync::Mutex::new(value))
        }
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }
}
