//! A cache of keys without values, with batches of one: what a policy does when the host tells it everything at once.

use std::collections::HashMap;

use crate::{Batch, Entries, Eviction, Limits, NEVER, Parameters, Refusal, Shard, Slot};

/// Mixes a key into a fingerprint (splitmix64).
pub fn fingerprint(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Replays requests against a policy, a batch each.
#[derive(Debug)]
pub struct Simulator<P> {
    shard: Shard<P>,
    slots: HashMap<u64, Slot>,
    keys: Vec<u64>,
    free: Vec<Slot>,
    now: u64,
    /// Requests that found their key.
    pub hits: u64,
    /// All requests.
    pub requests: u64,
}

impl<P: Eviction> Simulator<P> {
    /// An empty cache with the policy's default parameters.
    ///
    /// # Errors
    /// As [`Eviction::open`].
    pub fn new(limits: &Limits) -> Result<Self, Refusal> {
        Self::with_parameters(limits, &Parameters::defaults(&P::ABOUT))
    }

    /// An empty cache.
    ///
    /// # Errors
    /// As [`Eviction::open`].
    pub fn with_parameters(limits: &Limits, parameters: &Parameters) -> Result<Self, Refusal> {
        let shard = Shard::open(limits, parameters)?;
        Ok(Simulator { shard, slots: HashMap::new(), keys: Vec::new(), free: Vec::new(), now: 0, hits: 0, requests: 0 })
    }

    /// Asks for `key`, which weighs `weight`, and puts it in if it is not there. Answers whether it was. One
    /// millisecond passes.
    pub fn request(&mut self, key: u64, weight: u32) -> bool {
        self.request_expiring(key, weight, NEVER)
    }

    /// As [`Self::request`], with an expiry for the entry that comes in (which the simulator leaves to the policy).
    pub fn request_expiring(&mut self, key: u64, weight: u32, expires_at: u64) -> bool {
        self.requests += 1;
        self.now += 1;
        if let Some(&slot) = self.slots.get(&key) {
            self.hits += 1;
            let victims = self.shard.advance(&Batch { now: self.now, touched: &[slot], ..Batch::default() });
            self.evict(&victims);
            return true;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.keys.push(0);
            (self.keys.len() - 1) as Slot
        });
        self.slots.insert(key, slot);
        self.keys[slot as usize] = key;
        let arrived = Entries {
            slots: &[slot],
            fingerprints: &[fingerprint(key)],
            weights: &[weight],
            expiries: &[expires_at],
            ..Entries::default()
        };
        let victims = self.shard.advance(&Batch { now: self.now, arrived, ..Batch::default() });
        self.evict(&victims);
        false
    }

    fn evict(&mut self, victims: &[Slot]) {
        for &victim in victims {
            let key = self.keys[victim as usize];
            assert_eq!(self.slots.remove(&key), Some(victim), "the victim {victim} is not resident");
            self.free.push(victim);
        }
    }

    /// Whether a key is resident.
    pub fn contains(&self, key: u64) -> bool {
        self.slots.contains_key(&key)
    }

    /// The share of the requests that were hits.
    pub fn hit_ratio(&self) -> f64 {
        self.hits as f64 / self.requests.max(1) as f64
    }

    /// The policy.
    pub fn policy(&self) -> &P {
        self.shard.policy()
    }
}
