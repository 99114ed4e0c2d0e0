//! Locks for what takes some ten nanoseconds: one locked instruction rather than two.
//!
//! A lock that wakes whoever waits has to ask, when it is let go of, whether anybody does: a second locked instruction, at some
//! twenty cycles each. Here who waits looks again by itself, so that to let go is a plain store. Waiting spins at first, then
//! lets others run, then sleeps, for at most [`LONGEST_SLEEP`] at a time: a holder that was preempted keeps no processor busy, and
//! that nobody is woken costs who waits so much at worst. So these are for what is held shortly, and for what is held while
//! others work (a policy that runs, a load that is polled) parking_lot's are right.

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use crate::sync::{AtomicU32, Ordering, give_way};

/// Looks at a lock between which the processor only rests, twice as long each time.
const SPINS: u32 = 6;
/// Looks after which others may run.
const YIELDS: u32 = SPINS + 10;
/// How long a thread that goes on waiting sleeps at first, and at most.
const FIRST_SLEEP: Duration = Duration::from_micros(20);
const LONGEST_SLEEP: Duration = Duration::from_millis(1);

/// The patience of who waits for a lock.
struct Waiting {
    looks: u32,
    sleep: Duration,
}

impl Waiting {
    fn begin() -> Self {
        Waiting { looks: 0, sleep: FIRST_SLEEP }
    }

    /// Until the next look.
    fn rest(&mut self) {
        self.looks += 1;
        if self.looks <= SPINS && cfg!(not(any(shuttle, miri))) {
            (0..1 << self.looks).for_each(|_| std::hint::spin_loop());
        } else if self.looks <= YIELDS || cfg!(shuttle) {
            give_way();
        } else {
            std::thread::sleep(self.sleep);
            self.sleep = LONGEST_SLEEP.min(2 * self.sleep);
        }
    }
}

/// Somebody has the lock.
const HELD: u32 = 1 << 31;
/// It is free, and what it guards is [busy](Lock::is_idle).
const BUSY: u32 = 1;

/// An exclusive lock around a `T`.
pub(crate) struct Lock<T> {
    word: AtomicU32,
    content: UnsafeCell<T>,
}

// SAFETY: a shared lock hands out its content to one thread at a time, by `&mut`: as `Mutex`.
unsafe impl<T: Send> Sync for Lock<T> {}

/// The right to what a [`Lock`] guards.
pub(crate) struct Held<'l, T> {
    lock: &'l Lock<T>,
    /// What the word is when this is let go of.
    after: u32,
    /// It is as good as this, and no more `Send` and `Sync`.
    content: PhantomData<&'l mut T>,
}

impl<T> Lock<T> {
    pub(crate) const fn new(content: T) -> Self {
        Lock { word: AtomicU32::new(0), content: UnsafeCell::new(content) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Held<'_, T> {
        // Where it is held the word says so already, and this changes nothing.
        let before = self.word.swap(HELD, Ordering::Acquire);
        let after = if before == HELD { self.wait() } else { before };
        Held { lock: self, after, content: PhantomData }
    }

    #[cold]
    #[inline(never)]
    fn wait(&self) -> u32 {
        let mut waiting = Waiting::begin();
        loop {
            waiting.rest();
            if self.word.load(Ordering::Relaxed) != HELD {
                let before = self.word.swap(HELD, Ordering::Acquire);
                if before != HELD {
                    return before;
                }
            }
        }
    }

    /// Whether nobody has the lock, and who had it last did not [say](Held::set_busy) that it is busy. Who takes the lock and
    /// leaves it busy is seen here from when it took it on.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.word.load(Ordering::SeqCst) == 0
    }
}

impl<T> Held<'_, T> {
    /// Whether what is guarded is busy from when this is let go of.
    #[inline]
    pub(crate) fn set_busy(&mut self, busy: bool) {
        self.after = if busy { BUSY } else { 0 };
    }
}

impl<T> Drop for Held<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.word.store(self.after, Ordering::Release);
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: whoever has a `Held` found the word free when it made it `HELD`, and nobody else does until it is dropped.
        unsafe { &*self.lock.content.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; and this one is borrowed exclusively.
        unsafe { &mut *self.lock.content.get() }
    }
}

/// Somebody waits to have it alone: nobody joins those who share it.
const WANTED: u32 = 1 << 30;

/// A lock that many share, or one has alone.
#[derive(Default)]
pub(crate) struct SharedLock {
    /// How many share it; or [`HELD`], by one alone.
    word: AtomicU32,
}

/// A share in a [`SharedLock`].
pub(crate) struct Share<'l>(&'l SharedLock);

/// A [`SharedLock`] for oneself alone.
pub(crate) struct Alone<'l>(&'l SharedLock);

/// A [`SharedLock`] for a look at what it guards, which is not written.
pub(crate) enum Look<'l> {
    Shared(#[expect(dead_code, reason = "held until it is dropped")] Share<'l>),
    Alone(#[expect(dead_code, reason = "held until it is dropped")] Alone<'l>),
}

impl SharedLock {
    /// For a look, which others may share unless it is brief: to have it alone takes one locked instruction, to share it two.
    #[inline]
    pub(crate) fn look(&self, is_brief: bool) -> Look<'_> {
        if is_brief { Look::Alone(self.alone()) } else { Look::Shared(self.share()) }
    }

    #[inline]
    pub(crate) fn share(&self) -> Share<'_> {
        if !self.try_share() {
            self.wait_to_share();
        }
        Share(self)
    }

    #[inline]
    fn try_share(&self) -> bool {
        let sharers = self.word.load(Ordering::Relaxed);
        let is_open = sharers & (HELD | WANTED) == 0;
        is_open && self.word.compare_exchange(sharers, sharers + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    #[inline(never)]
    fn wait_to_share(&self) {
        let mut waiting = Waiting::begin();
        while !self.try_share() {
            // Where others only came or went meanwhile, there is nothing to wait for.
            if self.word.load(Ordering::Relaxed) & (HELD | WANTED) != 0 {
                waiting.rest();
            }
        }
    }

    #[inline]
    pub(crate) fn alone(&self) -> Alone<'_> {
        if self.word.compare_exchange(0, HELD, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.wait_to_be_alone();
        }
        Alone(self)
    }

    #[cold]
    #[inline(never)]
    fn wait_to_be_alone(&self) {
        let mut waiting = Waiting::begin();
        loop {
            let word = self.word.load(Ordering::Relaxed);
            if word & !WANTED == 0 {
                // Of others who wait, each says so again.
                if self.word.compare_exchange(word, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return;
                }
                continue;
            }
            if word & WANTED == 0 {
                self.word.fetch_or(WANTED, Ordering::Relaxed);
            }
            waiting.rest();
        }
    }
}

impl Drop for Share<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.word.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Alone<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.word.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    #[cfg(not(shuttle))]
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::sync::{interleave, spawn};

    /// Runs it on three threads.
    fn on_three(what: impl Fn() + Send + Sync + 'static) {
        let what = Arc::new(what);
        let threads = [what.clone(), what.clone(), what].map(|what| spawn(move || what()));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn one_thread_has_a_lock() {
        interleave(100, |_| {
            let lock = Arc::new(Lock::new(0));
            let counted = lock.clone();
            on_three(move || {
                for _ in 0..5 {
                    let mut count = counted.lock();
                    let seen = *count;
                    give_way();
                    *count = seen + 1;
                }
            });
            assert_eq!(*lock.lock(), 15);
            assert!(lock.is_idle());
        });
    }

    // By one thread: there is nothing to interleave.
    #[cfg(not(shuttle))]
    #[test]
    fn what_was_left_busy_is_busy() {
        let lock = Lock::new(());
        assert!(lock.is_idle());
        let mut held = lock.lock();
        assert!(!lock.is_idle(), "held");
        held.set_busy(true);
        drop(held);
        assert!(!lock.is_idle(), "left busy");
        drop(lock.lock());
        assert!(!lock.is_idle(), "nobody said that it is busy no more");
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _held = lock.lock();
            panic!("while it is held");
        }));
        assert!(panicked.is_err() && !lock.is_idle());
        lock.lock().set_busy(false);
        assert!(lock.is_idle());
    }

    /// Who finds the lock idle has done what it did before in time for who takes it later.
    #[test]
    fn who_is_not_seen_sees() {
        interleave(100, |_| {
            let (lock, told) = (Arc::new(Lock::new(())), Arc::new(AtomicU32::new(0)));
            let teller = {
                let (lock, told) = (lock.clone(), told.clone());
                spawn(move || {
                    told.store(1, Ordering::SeqCst);
                    lock.is_idle()
                })
            };
            lock.lock().set_busy(true);
            let heard = told.load(Ordering::SeqCst) == 1;
            assert!(heard || !teller.join().unwrap(), "neither saw the other");
        });
    }

    #[test]
    fn many_share_or_one_is_alone() {
        interleave(100, |_| {
            let (lock, inside) = (Arc::new(SharedLock::default()), Arc::new(AtomicU32::new(0)));
            const ALONE: u32 = 100;
            let (ended_lock, ended_inside) = (lock.clone(), inside.clone());
            on_three(move || {
                for _ in 0..3 {
                    let share = lock.share();
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < ALONE);
                    give_way();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(share);
                    let alone = lock.alone();
                    assert_eq!(inside.swap(ALONE, Ordering::SeqCst), 0);
                    give_way();
                    inside.store(0, Ordering::SeqCst);
                    drop(alone);
                }
            });
            assert_eq!(ended_inside.load(Ordering::SeqCst), 0);
            assert_eq!(ended_lock.word.load(Ordering::SeqCst), 0, "nobody is left");
        });
    }

    /// Two who share in turns, so that somebody always does, until a third has had it alone.
    #[test]
    fn sharers_let_somebody_in_who_waits() {
        interleave(100, |_| {
            let (lock, was_alone) = (Arc::new(SharedLock::default()), Arc::new(AtomicBool::new(false)));
            let waiting = {
                let (lock, was_alone) = (lock.clone(), was_alone.clone());
                spawn(move || {
                    drop(lock.alone());
                    was_alone.store(true, Ordering::SeqCst);
                })
            };
            let mut share = lock.share();
            while !was_alone.load(Ordering::SeqCst) {
                give_way();
                // The next before the last ends, unless somebody waits.
                share = match lock.try_share() {
                    true => Share(&lock),
                    false => {
                        drop(share);
                        lock.share()
                    }
                };
            }
            drop(share);
            waiting.join().unwrap();
        });
    }
}
