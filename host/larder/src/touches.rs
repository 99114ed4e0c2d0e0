//! Which entries were read since the policy last heard: buffers that a hit writes to without waiting for anybody.
//!
//! Threads are spread over *stripes*; a stripe is a ring of slots that is filled from its start, and counters for
//! hits and misses beside it, because a hit has that line at hand anyway. A slot in a ring is a hint: one that was
//! reused meanwhile touches the wrong entry, one that finds the ring full is lost. Nothing else depends on it.

use std::cell::Cell;

use crate::eviction::Slot;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Slots that a stripe holds before somebody has to take them.
const RING: usize = 128;

#[repr(align(128))]
struct Stripe {
    hits: AtomicU64,
    misses: AtomicU64,
    /// How many were put in, or tried to be.
    tail: AtomicU32,
    /// Slots + 1; 0 is a place that was taken in turn but not written yet.
    ring: [AtomicU32; RING],
}

/// The buffers of one shard.
pub(crate) struct Touches {
    stripes: Box<[Stripe]>,
}

/// A number for each thread, to spread threads over stripes.
fn thread_number() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) });
    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

impl Touches {
    /// Buffers for `stripes` threads.
    pub(crate) fn new(stripes: usize) -> Self {
        let stripe = || Stripe {
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            tail: AtomicU32::new(0),
            ring: [const { AtomicU32::new(0) }; RING],
        };
        Touches { stripes: (0..stripes.next_power_of_two()).map(|_| stripe()).collect() }
    }

    #[inline]
    fn stripe(&self) -> &Stripe {
        &self.stripes[thread_number() & (self.stripes.len() - 1)]
    }

    /// Counts a hit.
    #[inline]
    pub(crate) fn hit(&self) {
        self.stripe().hits.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a miss.
    #[inline]
    pub(crate) fn miss(&self) {
        self.stripe().misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a slot.
    #[inline]
    pub(crate) fn push(&self, slot: Slot) -> Pushed {
        let stripe = self.stripe();
        let at = stripe.tail.fetch_add(1, Ordering::Relaxed);
        match stripe.ring.get(at as usize) {
            Some(place) => {
                place.store(slot + 1, Ordering::Release);
                if at as usize + 1 == RING { Pushed::Due } else { Pushed::Noted }
            }
            None => Pushed::Lost,
        }
    }

    /// Takes all slots that were noted, oldest first in each stripe.
    pub(crate) fn take(&self, mut each: impl FnMut(Slot)) {
        for stripe in &self.stripes {
            let noted = stripe.tail.load(Ordering::Relaxed).min(RING as u32);
            if noted == 0 {
                continue;
            }
            for place in &stripe.ring[..noted as usize] {
                // A place whose writer is late is left: what it writes is taken with a later batch, or overwritten.
                let slot = place.swap(0, Ordering::Acquire);
                if slot != 0 {
                    each(slot - 1);
                }
            }
            stripe.tail.store(0, Ordering::Release);
        }
    }

    /// Hits and misses so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.stripes.iter().fold((0, 0), |(hits, misses), stripe| {
            (hits + stripe.hits.load(Ordering::Relaxed), misses + stripe.misses.load(Ordering::Relaxed))
        })
    }
}

/// What became of a slot that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It is in the buffer.
    Noted,
    /// It is in the buffer, which is full now and should be taken.
    Due,
    /// The buffer was full. Whoever pushed should see to it that the slot can be noted again.
    Lost,
}
