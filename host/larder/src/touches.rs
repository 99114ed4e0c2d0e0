//! Hits, misses and replacements, counted without locked instructions; and, for a small cache, which entries were read,
//! in order.
//!
//! Each thread has a *stripe* of counters to itself while there are stripes; threads beyond that share some, by turns. (With one for
//! all of them, sixteen threads on two processors made hits twice as slow.)

use std::cell::{Cell, OnceCell};

use crate::eviction::Slot;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Reads that a thread notes before somebody should tell the policy, where it hears of each.
const RING: usize = 128;

#[repr(align(128))]
#[derive(Default)]
struct Stripe {
    hits: AtomicU64,
    misses: AtomicU64,
    replaced: AtomicU64,
    /// Reads in order, in a small cache. Each thread has its own, as the order of two threads' reads means nothing.
    ordered: Mutex<Vec<Slot>>,
}

/// What one shard knows of its reads.
pub(crate) struct Touches {
    /// One for each thread whose number is less.
    own: Box<[Stripe]>,
    /// Those of all others, at least one.
    shared: Box<[Stripe]>,
}

/// What a thread that has no number yet, or none any more, goes by.
const NONE: usize = usize::MAX;

thread_local! {
    // Without a destructor, so that it is read with one instruction.
    static NUMBER: Cell<usize> = const { Cell::new(NONE) };
}

/// The lowest number that no other living thread has. In the destructors of a thread that ends: that of nobody.
#[cold]
fn take_number() -> usize {
    static FREE: std::sync::Mutex<(Vec<usize>, usize)> = std::sync::Mutex::new((Vec::new(), 0));
    /// Gives the number back when its thread ends.
    struct Held(usize);
    impl Drop for Held {
        fn drop(&mut self) {
            NUMBER.set(NONE);
            FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).0.push(self.0);
        }
    }
    thread_local!(static HELD: OnceCell<Held> = const { OnceCell::new() });
    let take = || {
        let mut free = FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let lowest = (0..free.0.len()).min_by_key(|&at| free.0[at]);
        Held(match lowest {
            Some(at) => free.0.swap_remove(at),
            None => {
                free.1 += 1;
                free.1 - 1
            }
        })
    };
    let number = HELD.try_with(|held| held.get_or_init(take).0);
    number.inspect(|&number| NUMBER.set(number)).unwrap_or(NONE)
}

impl Touches {
    /// Counters for `threads` threads, and half as many for all others.
    pub(crate) fn new(threads: usize) -> Self {
        let stripes = |count: usize| (0..count).map(|_| Stripe::default()).collect();
        Touches { own: stripes(threads), shared: stripes(threads.div_ceil(2).max(1)) }
    }

    /// This thread's stripe, if it has one to itself.
    #[inline]
    fn own(&self) -> Option<&Stripe> {
        // A thread without a number has none of these either, so the way of a thread that has both is one comparison.
        self.own.get(NUMBER.get())
    }

    /// The stripe of a thread of which [`Self::own`] knows none, and whether it has it to itself.
    #[cold]
    fn other(&self) -> (&Stripe, bool) {
        let number = if NUMBER.get() == NONE { take_number() } else { NUMBER.get() };
        self.own.get(number).map_or_else(|| (&self.shared[number % self.shared.len()], false), |own| (own, true))
    }

    /// Adds one to a counter of this thread's stripe.
    #[inline]
    fn count(&self, counter: impl Fn(&Stripe) -> &AtomicU64) {
        let (stripe, is_own) = self.own().map_or_else(|| self.other(), |own| (own, true));
        let counter = counter(stripe);
        if is_own {
            // Nobody else writes it.
            counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        } else {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a hit.
    #[inline]
    pub(crate) fn hit(&self) {
        self.count(|stripe| &stripe.hits);
    }

    /// Counts a miss.
    #[inline]
    pub(crate) fn miss(&self) {
        self.count(|stripe| &stripe.misses);
    }

    /// Counts a value that was replaced.
    #[inline]
    pub(crate) fn replaced(&self) {
        self.count(|stripe| &stripe.replaced);
    }

    /// Notes a read; answers whether it is time to tell the policy.
    pub(crate) fn note(&self, slot: Slot) -> bool {
        let mut ordered = self.own().unwrap_or_else(|| self.other().0).ordered.lock();
        ordered.push(slot);
        ordered.len() >= RING
    }

    fn stripes(&self) -> impl Iterator<Item = &Stripe> {
        self.own.iter().chain(&self.shared)
    }

    /// Takes the reads that were noted, each thread's oldest first.
    pub(crate) fn take(&self, into: &mut Vec<Slot>) {
        self.stripes().for_each(|stripe| into.append(&mut stripe.ordered.lock()));
    }

    /// Values that were replaced so far.
    pub(crate) fn replacements(&self) -> u64 {
        self.stripes().map(|stripe| stripe.replaced.load(Ordering::Relaxed)).sum()
    }

    /// Hits and misses so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.stripes().fold((0, 0), |(hits, misses), stripe| {
            (hits + stripe.hits.load(Ordering::Relaxed), misses + stripe.misses.load(Ordering::Relaxed))
        })
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    /// Threads that share a stripe lose nothing, and nobody is counted twice.
    #[test]
    fn all_is_counted_whoever_reads() {
        const THREADS: u64 = 12;
        const READS: u64 = if cfg!(miri) { 20 } else { 5_000 };
        for stripes in [0, 1, 3, 2 * THREADS as usize] {
            let touches = Touches::new(stripes);
            // All at once, or one would have the number of another that has ended.
            let begin = std::sync::Barrier::new(THREADS as usize);
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        begin.wait();
                        (0..READS).for_each(|_| touches.hit());
                        touches.miss();
                        touches.replaced();
                        touches.note(7);
                    });
                }
            });
            assert_eq!((touches.counts(), touches.replacements()), ((THREADS * READS, THREADS), THREADS));
            let mut noted = Vec::new();
            touches.take(&mut noted);
            assert_eq!(noted, [7; THREADS as usize]);
        }
    }
}
