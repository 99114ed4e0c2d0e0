//! FIFO: evicts in order of arrival.

use larder_guest::kit::{Lists, Weights};
use larder_guest::{About, Arrival, Eviction, Limits, Parameters, Refusal, Slot, Victims};

/// Evicts in order of arrival. The cheapest of all; reads change nothing.
#[derive(Debug)]
pub struct Fifo {
    weights: Weights,
    queue: Lists<1>,
}

impl Eviction for Fifo {
    const ABOUT: About = About::new("fifo", env!("CARGO_PKG_VERSION"), "First in, first out: reads change nothing");

    fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
        Ok(Fifo { weights: Weights::new(limits), queue: Lists::new(limits) })
    }

    fn touch(&mut self, _: Slot, _: u32) {}

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        while !self.weights.fits(arrival.weight) {
            let Some(oldest) = self.queue.pop_front(0) else { break };
            self.weights.remove(oldest);
            victims.push(oldest);
        }
        self.weights.add(arrival.slot, arrival.weight);
        self.queue.push_back(0, arrival.slot);
    }

    fn depart(&mut self, slot: Slot) {
        self.queue.remove(slot);
        self.weights.remove(slot);
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        self.queue.iter(0).for_each(|slot| each(slot, 0));
    }
}
