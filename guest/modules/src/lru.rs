//! LRU: evicts what was read longest ago. The example of how small a policy is: the `lru` crate keeps the order, and
//! all that is left to say is what a touch, an arrival and a departure mean.
//!
//! What the crate costs: a node on the heap and a place in a hash table for each resident, about 70 bytes, where a doubly
//! linked list in an array over the slots (`kit::Lists`) needs 8; and with a million residents a touch takes three times
//! as long.

use core::hash::{BuildHasherDefault, Hasher};
use core::num::NonZeroUsize;

use larder_guest::kit::Weights;
use larder_guest::{About, Arrival, Change, Eviction, Limits, Parameters, Refusal, Slot, Victims};
use lru::LruCache;

/// A table for up to so many residents is made at once: their bound may be one that they never come near to.
const SIZED: u32 = 1 << 20;

/// Evicts what was read longest ago.
#[derive(Debug)]
pub struct Lru {
    weights: Weights,
    /// The weights decide who leaves; a bound of its own is never reached.
    order: LruCache<Slot, (), BuildHasherDefault<Multiply>>,
}

/// Hashes a slot: the same on every machine, and as good as any for small dense integers.
#[derive(Debug, Default)]
pub struct Multiply(u64);

impl Hasher for Multiply {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }
    #[inline]
    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0 ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

impl Lru {
    fn evict_one(&mut self, victims: &mut Victims) {
        let Some((victim, ())) = self.order.pop_lru() else { return };
        self.weights.remove(victim);
        victims.push(victim);
    }
}

impl Eviction for Lru {
    const ABOUT: About = About::new("lru", env!("CARGO_PKG_VERSION"), "Evicts what was read longest ago");

    fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
        let hasher = BuildHasherDefault::new();
        // Residents weigh 1 at least, so where as many as the capacity are expected, there are never more. A table that grows
        // would leave smaller ones behind, in a memory that never shrinks.
        let most = limits.expected.filter(|&n| u64::from(n) == limits.capacity && n <= SIZED);
        let order = match most.and_then(|n| NonZeroUsize::new(n as usize)) {
            Some(most) => LruCache::with_hasher(most, hasher),
            None => LruCache::unbounded_with_hasher(hasher),
        };
        Ok(Lru { weights: Weights::new(limits), order })
    }

    #[inline]
    fn touch(&mut self, slot: Slot, _: u32) {
        self.order.promote(&slot);
    }

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        while !self.weights.fits(arrival.weight) {
            self.evict_one(victims);
        }
        self.weights.add(arrival.slot, arrival.weight);
        self.order.put(arrival.slot, ());
    }

    fn depart(&mut self, slot: Slot) {
        self.order.pop(&slot);
        self.weights.remove(slot);
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.weights.remove(change.slot);
        self.weights.add(change.slot, change.weight);
        while self.weights.total() > self.weights.capacity() {
            self.evict_one(victims);
        }
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        self.order.iter().rev().for_each(|(&slot, ())| each(slot, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_guest::testkit::{self, Simulator};

    #[test]
    fn keeps_the_contract() {
        testkit::check::<Lru>();
    }

    #[test]
    fn evicts_what_was_read_longest_ago() {
        let mut cache = Simulator::<Lru>::new(&Limits::entries(3)).unwrap();
        let hits = [1, 2, 3, 1, 4, 2, 1, 4, 3].map(|key| cache.request(key, 1));
        // 4 pushes out 2, whose return pushes out 3, whose return pushes out 2 again.
        assert_eq!(hits, [false, false, false, true, false, false, true, true, false]);
        assert!(!cache.contains(2));
    }

    #[test]
    fn a_heavy_arrival_pushes_out_as_many_as_it_must() {
        let mut cache = Simulator::<Lru>::new(&Limits { expected: None, ..Limits::entries(10) }).unwrap();
        for (key, weight) in [(1, 3), (2, 3), (3, 4), (1, 3), (4, 6)] {
            cache.request(key, weight);
        }
        assert_eq!([1, 2, 3, 4].map(|key| cache.contains(key)), [true, false, false, true]);
    }
}
