//! A cache for hand-worked histories: few entries, open to look at.

extern crate std;

use std::vec::Vec;

use larder_guest::testkit::fingerprint;
use larder_guest::{Arrival, Eviction, Limits, NEVER, Parameters, Victims};

/// Keys in slots, and the policy over them.
pub(crate) struct Cache<P> {
    pub(crate) policy: P,
    slots: Vec<Option<u64>>,
}

impl<P: Eviction> Cache<P> {
    /// A cache of this weight, after these requests of weight 1.
    pub(crate) fn of(capacity: u32, keys: impl IntoIterator<Item = u64>) -> Self {
        let parameters = Parameters::defaults(&P::ABOUT);
        let policy = P::open(&Limits::entries(capacity), &parameters).expect("defaults are allowed");
        let mut cache = Cache { policy, slots: Vec::new() };
        cache.request_all(keys);
        cache
    }

    /// How many of the requests were hits.
    pub(crate) fn request_all(&mut self, keys: impl IntoIterator<Item = u64>) -> usize {
        keys.into_iter().filter(|&key| self.request(key, 1)).count()
    }

    /// Whether the key was there; it comes in if not.
    pub(crate) fn request(&mut self, key: u64, weight: u32) -> bool {
        if let Some(slot) = self.slots.iter().position(|&k| k == Some(key)) {
            self.policy.touch(slot as u32, 1);
            return true;
        }
        let slot = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(key);
        let mut victims = Victims::default();
        let fingerprint = fingerprint(key);
        let arrival = Arrival { slot: slot as u32, fingerprint, weight, cost: 0, expires_at: NEVER };
        self.policy.arrive(&arrival, &mut victims);
        for victim in victims.into_vec() {
            assert!(self.slots[victim as usize].take().is_some(), "victims are residents");
        }
        false
    }

    /// Whether a key is resident.
    pub(crate) fn contains(&self, key: u64) -> bool {
        self.slots.contains(&Some(key))
    }

    /// The resident keys, the next victim first.
    pub(crate) fn order(&self) -> Vec<u64> {
        let mut keys = Vec::new();
        self.policy.residents(&mut |slot, _| keys.extend(self.slots[slot as usize]));
        keys
    }

    /// The same residents in another policy, as after a swap.
    pub(crate) fn swapped<Q: Eviction>(&self, capacity: u32) -> Cache<Q> {
        let mut next = Cache::<Q>::of(capacity, []);
        if P::ABOUT.name == Q::ABOUT.name {
            next.policy.recall(&self.policy.learned());
        }
        next.slots = self.slots.clone();
        let mut victims = Victims::default();
        self.policy.residents(&mut |slot, uses| {
            let key = self.slots[slot as usize].expect("residents are resident");
            let fingerprint = fingerprint(key);
            let resident = Arrival { slot, fingerprint, weight: 1, cost: 0, expires_at: NEVER };
            next.policy.adopt(&resident, uses, &mut victims);
        });
        assert!(victims.as_slice().is_empty(), "what fitted fits");
        next
    }
}
