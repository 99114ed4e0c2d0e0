//! LFU with dynamic ageing: evicts what was used least, and lets old fame fade.
//!
//! Arlitt, Cherkasova, Dilley, Friedrich and Jin, "Evaluating Content Management Techniques for Web Proxy Caches",
//! SIGMETRICS Performance Evaluation Review 2000 (LFU-DA). A resident's key is how often it was used plus the *age* of the
//! cache when it was last used; the least key leaves, and the age becomes that key. So nothing has to be halved: who
//! is no longer used is overtaken by newcomers, which start from a higher age.
//!
//! Keys lie between the age and the age + 255, so 256 lists, used as a ring, sort the residents in constant time; within a
//! list the least recently used goes first. 10 bytes a resident.
//!
//! Road not taken: plain LFU with a halving now and then, which costs a pass over all residents and a period to tune.

use alloc::vec::Vec;

use larder_guest::kit::{BySlot, Lists, Memo, Recollection, Weights};
use larder_guest::{About, Arrival, Change, Eviction, Limits, Parameters, Refusal, Slot, Victims};

/// Of what is written for a successor.
const VERSION: u32 = 1;

const RING: usize = 256;
/// Uses are counted up to here: a newcomer's key is the age + 1, so that the age itself and all keys fit in the ring.
const MOST_USES: u32 = RING as u32 - 2;

/// Evicts what was used least; what is no longer used ages.
#[derive(Debug)]
pub struct Lfu {
    weights: Weights,
    /// The residents with a key, in the list that is the key modulo [`RING`].
    by_key: Lists<RING>,
    /// How often a resident was used since it came.
    uses: BySlot<u8>,
    /// The age, modulo [`RING`]; no key is below it.
    age: u8,
    /// While residents are adopted: how often each was used since it came, by slot; and how many of the next have the
    /// age itself for their key.
    recalled: Vec<u8>,
    at_age: u32,
}

impl Lfu {
    fn list(&self, uses: u8) -> usize {
        usize::from(self.age.wrapping_add(uses).wrapping_add(1))
    }

    fn evict_one(&mut self, victims: &mut Victims) {
        for _ in 0..RING {
            if let Some(victim) = self.by_key.front(self.age.into()) {
                self.depart(victim);
                victims.push(victim);
                return;
            }
            self.age = self.age.wrapping_add(1);
        }
    }
}

impl Eviction for Lfu {
    const ABOUT: About = About::new(
        "lfu",
        env!("CARGO_PKG_VERSION"),
        "Evicts what was used least, and lets what is no longer used age (LFU with dynamic ageing, PER 2000)",
    );

    fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
        Ok(Lfu {
            weights: Weights::new(limits),
            by_key: Lists::new(limits),
            uses: BySlot::new(limits),
            age: 0,
            recalled: Vec::new(),
            at_age: 0,
        })
    }

    fn begin(&mut self, _: u64) {
        if !self.recalled.is_empty() {
            (self.recalled, self.at_age) = (Vec::new(), 0);
        }
    }

    #[inline]
    fn touch(&mut self, slot: Slot, times: u32) {
        let uses = (u32::from(self.uses.get(slot)) + times).min(MOST_USES) as u8;
        self.uses.set(slot, uses);
        self.by_key.move_to_back(self.list(uses), slot);
    }

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        while !self.weights.fits(arrival.weight) {
            self.evict_one(victims);
        }
        self.weights.add(arrival.slot, arrival.weight);
        self.uses.set(arrival.slot, 0);
        self.by_key.push_back(self.list(0), arrival.slot);
    }

    fn depart(&mut self, slot: Slot) {
        self.by_key.remove(slot);
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
        for ahead in 0..=u8::MAX {
            let list = self.age.wrapping_add(ahead);
            // Above the age, that is: what a use is worth now, not when it was made.
            let worth = u32::from(ahead.saturating_sub(1));
            self.by_key.iter(list.into()).for_each(|slot| each(slot, worth));
        }
    }

    /// What its uses are worth by now places it; how many they were decides how far the next one lifts it.
    fn adopt(&mut self, resident: &Arrival, uses: u32, victims: &mut Victims) {
        self.arrive(resident, victims);
        let worth = uses.min(MOST_USES) as u8;
        let list = if self.at_age > 0 { self.age.into() } else { self.list(worth) };
        self.at_age = self.at_age.saturating_sub(1);
        self.by_key.move_to_back(list, resident.slot);
        let uses = self.recalled.get(resident.slot as usize).copied().unwrap_or(0);
        self.uses.set(resident.slot, uses.max(worth).min(MOST_USES as u8));
    }

    fn learned(&self) -> Vec<u8> {
        let mut memo = Memo::new(VERSION);
        memo.word(self.by_key.len(self.age.into()));
        memo.bytes(self.uses.values());
        memo.into_bytes()
    }

    fn recall(&mut self, learned: &[u8]) -> bool {
        let read = || {
            let mut memo = Recollection::of(learned, VERSION)?;
            Some((memo.word()?, memo.bytes()?))
        };
        let Some((at_age, uses)) = read() else { return false };
        (self.at_age, self.recalled) = (at_age, uses.to_vec());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_guest::testkit::{self, Simulator};

    #[test]
    fn keeps_the_contract() {
        testkit::check::<Lfu>();
    }

    #[test]
    fn evicts_what_was_used_least_and_of_those_the_least_recent() {
        let mut cache = Simulator::<Lfu>::new(&Limits::entries(3)).unwrap();
        for key in [1, 1, 2, 2, 3, 4] {
            cache.request(key, 1);
        }
        assert_eq!([1, 2, 3, 4].map(|key| cache.contains(key)), [true, true, false, true]);
        // A new use of 1 and two of 4 leave 2 as the one used least.
        for key in [4, 4, 1, 5, 5] {
            cache.request(key, 1);
        }
        assert_eq!([1, 2, 4, 5].map(|key| cache.contains(key)), [true, false, true, true]);
    }

    #[test]
    fn old_fame_fades() {
        let mut cache = Simulator::<Lfu>::new(&Limits::entries(2)).unwrap();
        (0..50).for_each(|_| {
            cache.request(0, 1);
        });
        // Without ageing, key 0 would stay for ever; each newcomer that leaves raises the age by one.
        (1..50).for_each(|key| {
            cache.request(key, 1);
        });
        assert!(cache.contains(0));
        (50..60).for_each(|key| {
            cache.request(key, 1);
        });
        assert!(!cache.contains(0));
    }

    #[test]
    fn a_thousand_uses_wrap_nothing() {
        let mut cache = Simulator::<Lfu>::new(&Limits::entries(2)).unwrap();
        for round in 0..10u64 {
            (0..1000).for_each(|_| {
                cache.request(round, 1);
            });
            (0..100).for_each(|i| {
                cache.request(1000 + i, 1);
            });
            assert!(cache.contains(round));
        }
    }
}
