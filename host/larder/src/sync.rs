//! The primitives that shared structures are built on, switched to shuttle's for its tests, where shuttle decides at each
//! of them which thread goes on. `tests/interleave` builds them so, and says how to run it.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(shuttle))]
pub(crate) use std::sync::{
    OnceLock,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

#[cfg(shuttle)]
pub(crate) use shuttle_shim::*;

/// parking_lot's interface over shuttle's types.
#[cfg(shuttle)]
mod shuttle_shim {
    pub(crate) use shuttle::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
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

    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            RwLock(shuttle::sync::RwLock::new(value))
        }
        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }
}
