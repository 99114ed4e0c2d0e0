//! Random: evicts any resident. The yardstick that a policy has to beat, and hard to beat on loops that are a little
//! larger than the cache.
//!
//! Residents fill a dense array in no particular order; the last one takes the place of the one that leaves. 8 bytes a
//! resident; a read costs nothing.

use alloc::vec::Vec;

use larder_guest::kit::{BySlot, Weights};
use larder_guest::{About, Arrival, Change, Eviction, Limits, Parameters, Refusal, Slot, Victims};

/// Evicts any resident, as the seed of the limits has it.
#[derive(Debug)]
pub struct Random {
    weights: Weights,
    residents: Vec<Slot>,
    /// Where in `residents` a slot is.
    places: BySlot<u32>,
    /// The state of a splitmix64.
    state: u64,
}

impl Random {
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn evict_one(&mut self, victims: &mut Victims) {
        // The upper half of a product with the length: as even as a remainder, without a division.
        let place = ((self.random() >> 32) * self.residents.len() as u64) >> 32;
        let victim = self.residents[place as usize];
        self.depart(victim);
        victims.push(victim);
    }
}

impl Eviction for Random {
    const ABOUT: About = About::new("random", env!("CARGO_PKG_VERSION"), "Evicts any resident");

    fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
        let (residents, places) = (Vec::new(), BySlot::new(limits));
        Ok(Random { weights: Weights::new(limits), residents, places, state: limits.seed })
    }

    #[inline]
    fn touch(&mut self, _: Slot, _: u32) {}

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        while !self.weights.fits(arrival.weight) {
            self.evict_one(victims);
        }
        self.weights.add(arrival.slot, arrival.weight);
        self.places.set(arrival.slot, self.residents.len() as u32);
        self.residents.push(arrival.slot);
    }

    fn depart(&mut self, slot: Slot) {
        self.weights.remove(slot);
        let place = self.places.get(slot);
        self.residents.swap_remove(place as usize);
        if let Some(&moved) = self.residents.get(place as usize) {
            self.places.set(moved, place);
        }
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.weights.remove(change.slot);
        self.weights.add(change.slot, change.weight);
        while self.weights.total() > self.weights.capacity() {
            self.evict_one(victims);
        }
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        self.residents.iter().for_each(|&slot| each(slot, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_guest::testkit::{self, Simulator};

    #[test]
    fn keeps_the_contract() {
        testkit::check::<Random>();
    }

    /// Among `n` keys asked for in a loop, which of them are resident at the end.
    fn survivors(seed: u64) -> Vec<u64> {
        let mut cache = Simulator::<Random>::new(&Limits { seed, ..Limits::entries(50) }).unwrap();
        (0..1000).for_each(|i| {
            cache.request(i % 100, 1);
        });
        (0..100).filter(|&key| cache.contains(key)).collect()
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(survivors(1), survivors(1));
        assert_ne!(survivors(1), survivors(2));
    }

    #[test]
    fn every_resident_is_as_likely() {
        let mut evicted = [0u32; 4];
        for seed in 0..4000 {
            let mut cache = Simulator::<Random>::new(&Limits { seed, ..Limits::entries(4) }).unwrap();
            (0..5).for_each(|key| {
                cache.request(key, 1);
            });
            assert!(cache.contains(4), "the arrival stays");
            evicted[(0..4).find(|&key| !cache.contains(key)).unwrap() as usize] += 1;
        }
        // 1000 expected of each; the standard deviation is 27.
        assert!(evicted.iter().all(|n| (850..1150).contains(n)), "{evicted:?}");
    }
}
