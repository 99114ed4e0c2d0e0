extern crate std;

use std::vec::Vec;

use larder_guest::testkit::Simulator;
use larder_guest::{Entries, Eviction, Limits, Parameters, Shard};

use super::Adaptive;
use crate::testing::Cache;

/// Random numbers that are the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        larder_guest::testkit::fingerprint(self.0)
    }

    /// 0 to 1.
    fn share(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A key below `keys`, by a power law: the least are the most popular.
    fn skewed(&mut self, keys: u64) -> u64 {
        // The inverse of the distribution 1/x (zipf of 1), continuous.
        (keys as f64).powf(self.share()) as u64 - 1
    }
}

/// The hit ratio of `P` over a workload.
fn ratio<P: Eviction>(capacity: u32, requests: &[u64]) -> f64 {
    let mut cache = Simulator::<P>::new(&Limits::entries(capacity)).expect("defaults are allowed");
    requests.iter().for_each(|&key| _ = cache.request(key, 1));
    cache.hit_ratio()
}

#[test]
fn keeps_the_contract() {
    larder_guest::testkit::check::<Adaptive>();
}

/// A loop larger than the cache: LRU has no hit at all, the best possible keeps what it has.
#[test]
fn loops_are_kept_in_part() {
    for (capacity, keys) in [(10u32, 1_000u64), (100, 1_000), (1_000, 1_200), (5_000, 8_000)] {
        let requests: Vec<u64> = (0..40 * keys).map(|i| i % keys).collect();
        let best = f64::from(capacity) / keys as f64;
        let ours = ratio::<Adaptive>(capacity, &requests);
        assert!(ours > 0.75 * best, "{capacity} of {keys}: {ours:.3}, at best {best:.3}");
    }
}

/// Popular keys, and every 10,000 requests a scan of 10 times the capacity.
#[test]
fn scans_pass_through() {
    let mut dice = Dice(1);
    let (mut calm, mut scanned) = (Vec::new(), Vec::new());
    let mut fresh = 1 << 40;
    for i in 0..200_000 {
        let key = dice.skewed(20_000);
        calm.push(key);
        scanned.push(key);
        if i % 10_000 == 9_999 {
            scanned.extend(fresh..fresh + 5_000);
            fresh += 5_000;
        }
    }
    // Hits among the popular keys are all there are.
    let hits = ratio::<Adaptive>(500, &scanned) * scanned.len() as f64;
    let calm = ratio::<Adaptive>(500, &calm) * calm.len() as f64;
    assert!(hits > 0.95 * calm, "{hits} of {calm} hits are left");
}

/// Where popularity stands still, the best that is possible is to keep the most popular.
#[test]
fn steady_popularity_is_learned() {
    let mut dice = Dice(2);
    let requests: Vec<u64> = (0..300_000).map(|_| dice.skewed(20_000)).collect();
    for capacity in [20u32, 200, 2_000] {
        let best = requests.iter().filter(|&&key| key < u64::from(capacity)).count() as f64 / requests.len() as f64;
        let ours = ratio::<Adaptive>(capacity, &requests);
        assert!(ours > best - 0.05, "{capacity}: {ours:.3}, knowing the odds {best:.3}");
    }
}

/// Where it drifts, what was popular must be given up.
#[test]
fn drifting_popularity_is_followed() {
    let mut dice = Dice(3);
    // The whole ranking moves on by one key every 5 requests: the 1,000 most popular are all others after 5,000.
    let requests: Vec<u64> = (0..200_000).map(|i| i / 5 + dice.skewed(10_000)).collect();
    let lru = ratio::<crate::lru::Lru>(1_000, &requests);
    let lfu = ratio::<crate::lfu::Lfu>(1_000, &requests);
    let ours = ratio::<Adaptive>(1_000, &requests);
    assert!(ours > lru.max(lfu) - 0.005, "{ours:.3}, LRU {lru:.3}, LFU {lfu:.3}");
}

/// From popular keys to a loop to others to a flood: in each phase the best of the experts is another.
#[test]
fn changing_phases_are_followed() {
    let mut dice = Dice(4);
    let mut requests = Vec::new();
    for phase in 0..8u64 {
        for i in 0..40_000 {
            requests.push(match phase % 4 {
                0 => (phase << 32) | dice.skewed(20_000),
                1 => (1 << 40) | (i % 1_500),
                2 => dice.skewed(20_000),
                _ if dice.roll().is_multiple_of(2) => (phase << 32) | i,
                _ => dice.skewed(20_000),
            });
        }
    }
    let lru = ratio::<crate::lru::Lru>(1_000, &requests);
    let s3_fifo = ratio::<crate::s3_fifo::S3Fifo>(1_000, &requests);
    let ours = ratio::<Adaptive>(1_000, &requests);
    assert!(ours > lru.max(s3_fifo) + 0.03, "{ours:.3}, LRU {lru:.3}, S3-FIFO {s3_fifo:.3}");
}

/// With weights, what is small is worth more for its room: hits count, not bytes.
#[test]
fn weights_count() {
    let mut dice = Dice(5);
    let weight = |key: u64| if key.is_multiple_of(4) { 1_000 } else { 10 };
    let mut cache = Simulator::<Adaptive>::new(&Limits { capacity: 100_000, expected: None, seed: 0 }).expect("opens");
    for _ in 0..200_000 {
        let key = dice.skewed(20_000);
        cache.request(key, weight(key));
    }
    let mut lru =
        Simulator::<crate::lru::Lru>::new(&Limits { capacity: 100_000, expected: None, seed: 0 }).expect("opens");
    let mut dice = Dice(5);
    for _ in 0..200_000 {
        let key = dice.skewed(20_000);
        lru.request(key, weight(key));
    }
    assert!(cache.hit_ratio() > lru.hit_ratio() + 0.1, "{:.3}, LRU {:.3}", cache.hit_ratio(), lru.hit_ratio());
}

/// A swap for itself: the ratio afterwards is that of the policy that was left alone.
#[test]
fn a_swap_for_itself_costs_little() {
    let mut dice = Dice(6);
    let warm: Vec<u64> = (0..100_000).map(|_| dice.skewed(20_000)).collect();
    let after: Vec<u64> = (0..100_000).map(|_| dice.skewed(20_000)).collect();
    let mut cache = Cache::<Adaptive>::of(400, warm.iter().copied());
    let mut swapped = cache.swapped::<Adaptive>(400);
    let (left, moved) = (cache.request_all(after.iter().copied()), swapped.request_all(after.iter().copied()));
    assert!(moved as f64 > left as f64 - 0.003 * after.len() as f64, "{moved} hits, {left} without a swap");
}

/// The next victim comes first.
#[test]
fn residents_are_in_order() {
    let mut dice = Dice(7);
    let cache = Cache::<Adaptive>::of(30, (0..20_000).map(|_| dice.skewed(2_000)));
    let order = cache.order();
    let mut next = cache;
    // A new key: either it is refused, or one of the first goes (time has passed since).
    next.request(1 << 50, 1);
    let gone: Vec<u64> = order.iter().copied().filter(|&key| !next.contains(key)).collect();
    assert!(gone.iter().all(|key| order[..3].contains(key)), "{gone:?} left, {order:?}");
}

/// After most residents were taken out, those that are left are still found.
#[test]
fn finds_the_few_that_are_left() {
    let limits = Limits { capacity: 10_000, expected: None, seed: 0 };
    let mut shard = Shard::<Adaptive>::open(&limits, &Parameters::defaults(&Adaptive::ABOUT)).expect("opens");
    let slots: Vec<u32> = (0..10_000).collect();
    let fingerprints: Vec<u64> = slots.iter().map(|&slot| larder_guest::testkit::fingerprint(slot.into())).collect();
    let arrived = Entries { slots: &slots, fingerprints: &fingerprints, ..Entries::default() };
    assert!(shard.advance(&larder_guest::Batch { arrived, ..Default::default() }).is_empty());
    // One that needs nearly all of the room.
    let arrived = Entries { slots: &[10_000], fingerprints: &[1], weights: &[9_990], ..Entries::default() };
    let victims = shard.advance(&larder_guest::Batch { arrived, ..Default::default() });
    assert!(victims == [10_000] || victims.len() == 9_990, "{} victims", victims.len());
}
