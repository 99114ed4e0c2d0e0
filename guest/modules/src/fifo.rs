//! FIFO: evicts in order of arrival.
//!
//! The cheapest of all: a read changes nothing, and so costs nothing. 8 bytes a resident.

use larder_guest::kit::{Lists, Weights};
use larder_guest::{About, Arrival, Change, Eviction, Limits, Parameters, Refusal, Slot, Victims};

/// Evicts in order of arrival.
#[derive(Debug)]
pub struct Fifo {
    weights: Weights,
    queue: Lists<1>,
}

impl Fifo {
    fn evict_one(&mut self, victims: &mut Victims) {
        let Some(oldest) = self.queue.pop_front(0) else { return };
        self.weights.remove(oldest);
        victims.push(oldest);
    }
}

impl Eviction for Fifo {
    const ABOUT: About = About::new("fifo", env!("CARGO_PKG_VERSION"), "First in, first out: reads change nothing");

    fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
        Ok(Fifo { weights: Weights::new(limits), queue: Lists::new(limits) })
    }

    #[inline]
    fn touch(&mut self, _: Slot, _: u32) {}

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        while !self.weights.fits(arrival.weight) {
            self.evict_one(victims);
        }
        self.weights.add(arrival.slot, arrival.weight);
        self.queue.push_back(0, arrival.slot);
    }

    fn depart(&mut self, slot: Slot) {
        self.queue.remove(slot);
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
        self.queue.iter(0).for_each(|slot| each(slot, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_guest::testkit::{self, Simulator};

    #[test]
    fn keeps_the_contract() {
        testkit::check::<Fifo>();
    }

    #[test]
    fn reads_change_nothing() {
        let mut cache = Simulator::<Fifo>::new(&Limits::entries(2)).unwrap();
        let hits = [1, 2, 1, 1, 3, 1, 2].map(|key| cache.request(key, 1));
        assert_eq!(hits, [false, false, true, true, false, false, false]);
    }
}
