//! Belady's bound: the most hits that any policy can have, knowing the future.
//!
//! Objects count 1 each: that is where the greedy choice is optimal (L. Belady, IBM Systems Journal 5(2), 1966; Mattson
//! et al., 1970). With objects of different sizes the problem is NP-hard (Berger, Beckmann, Harchol-Balter, SIGMETRICS
//! 2018), and so there is no exact bound to print for a capacity in bytes.
//!
//! Two rules differ in what a miss may do. [`Rule::Bypass`] lets it leave the cache as it is, which is what a Larder policy
//! may do when it refuses an arrival: only this is a bound for every policy. [`Rule::Demand`], the textbook's MIN,
//! must keep what it just loaded and evict another; some simulators print this one. They differ by little, save on loops: a
//! policy with admission can have more hits than MIN, and never more than the bound.
//!
//! The trick that makes it cheap: a resident is known by its next use, which no other shares. A request hits if and only
//! if it is the next use of a resident; so one bit a request replaces a map of residents, and a heap of next uses finds
//! the furthest. Time is O(n log c); memory is 4 bytes a request, 1 bit more for each capacity while it runs, and
//! while the future is read some 20 bytes a key.

use std::collections::BinaryHeap;
use std::collections::hash_map::Entry;

/// "Never again": later than any request.
const NEVER: u32 = u32::MAX;

/// What a miss may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Rule {
    /// Leave the cache as it is, where everything in it is wanted sooner.
    Bypass,
    /// Nothing but take the place of another (MIN).
    Demand,
}

/// A trace has more requests than are numbered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the trace has more than {} requests, too many for --opt; cut it, or leave --opt out", NEVER - 1)]
pub struct TooLong;

/// Collects a trace for [`Future`].
#[derive(Debug, Default)]
pub struct Past {
    next: Vec<u32>,
    last: std::collections::HashMap<u64, u32, foldhash::fast::FixedState>,
}

impl Past {
    /// A request comes.
    ///
    /// # Errors
    /// After some 4 billion requests.
    pub fn push(&mut self, key: u64) -> Result<(), TooLong> {
        let now = u32::try_from(self.next.len()).ok().filter(|&now| now < NEVER).ok_or(TooLong)?;
        self.next.push(NEVER);
        match self.last.entry(key) {
            Entry::Occupied(mut last) => self.next[last.insert(now) as usize] = now,
            Entry::Vacant(first) => _ = first.insert(now),
        }
        Ok(())
    }

    /// How many keys there were.
    pub fn unique_keys(&self) -> u64 {
        self.last.len() as u64
    }

    /// All requests have come.
    pub fn end(self) -> Future {
        Future { next: self.next }
    }
}

/// For each request of a trace, when its key is asked for again.
#[derive(Debug)]
pub struct Future {
    next: Vec<u32>,
}

impl Future {
    /// The hits of a cache for `capacity` objects.
    pub fn hits(&self, capacity: u64, rule: Rule) -> u64 {
        // A cache that holds every key loses none; and the heap is never asked to be larger than the trace.
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX).min(self.next.len());
        // By time: whether it is the next use of a resident.
        let mut resident = vec![0u64; self.next.len().div_ceil(64)];
        let mut furthest = BinaryHeap::new();
        // Residents that are never used again: they have no bit, and are the first to go. Bypass never keeps one.
        let mut dead = 0;
        let (mut hits, mut alive) = (0, 0);
        for (now, &next) in self.next.iter().enumerate() {
            let (word, bit) = (now / 64, 1 << (now % 64));
            let hit = resident[word] & bit != 0;
            if hit {
                hits += 1;
                alive -= 1;
            } else if rule == Rule::Demand && alive + dead == capacity {
                match dead {
                    0 => evict(&mut furthest, &mut resident, &mut alive),
                    _ => dead -= 1,
                }
            }
            if next == NEVER {
                dead += usize::from(rule == Rule::Demand);
                continue;
            }
            resident[next as usize / 64] |= 1 << (next % 64);
            furthest.push(next);
            alive += 1;
            if alive + dead > capacity {
                evict(&mut furthest, &mut resident, &mut alive);
            }
            // What was hit stays in the heap, where it is the least: it goes here, a few at a time on average.
            if furthest.len() > 2 * capacity + 64 {
                furthest.retain(|&use_| use_ as usize > now);
            }
        }
        hits
    }

    /// How many requests there are.
    pub fn requests(&self) -> u64 {
        self.next.len() as u64
    }
}

/// Evicts the resident whose next use is furthest.
fn evict(furthest: &mut BinaryHeap<u32>, resident: &mut [u64], alive: &mut usize) {
    if let Some(next) = furthest.pop() {
        resident[next as usize / 64] &= !(1 << (next % 64));
        *alive -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Synthetic;

    fn hits(keys: &[u64], capacity: u64, rule: Rule) -> u64 {
        let mut past = Past::default();
        keys.iter().for_each(|&key| past.push(key).unwrap());
        past.end().hits(capacity, rule)
    }

    /// The most hits by trying every choice: no greed, no lemma.
    fn exhaustive(keys: &[u64], capacity: usize, rule: Rule) -> u64 {
        use std::collections::{BTreeMap, BTreeSet};
        let mut states = BTreeMap::from([(BTreeSet::new(), 0u64)]);
        for &key in keys {
            let mut after = BTreeMap::new();
            let mut reach = |set: BTreeSet<u64>, hits: u64| {
                let best = after.entry(set).or_insert(hits);
                *best = hits.max(*best);
            };
            for (set, hits) in states {
                if set.contains(&key) {
                    reach(set, hits + 1);
                    continue;
                }
                let mut with = set.clone();
                with.insert(key);
                if with.len() <= capacity {
                    reach(with, hits);
                } else {
                    for victim in &set {
                        let mut without = with.clone();
                        without.remove(victim);
                        reach(without, hits);
                    }
                    if rule == Rule::Bypass {
                        reach(set, hits);
                    }
                }
            }
            states = after;
        }
        states.into_values().max().unwrap_or(0)
    }

    #[test]
    fn equals_the_best_of_all_choices() {
        for seed in 0..300 {
            let spec = format!("uniform:{}:{}:{seed}", 2 + seed % 5, 1 + seed % 17);
            let keys: Vec<u64> = spec.parse::<Synthetic>().unwrap().requests().map(|r| r.key).collect();
            for capacity in 1..=5 {
                for rule in [Rule::Bypass, Rule::Demand] {
                    let found = hits(&keys, capacity, rule);
                    assert_eq!(found, exhaustive(&keys, capacity as usize, rule), "{keys:?} {capacity} {rule:?}");
                }
            }
        }
    }

    /// Belady's own example, as textbooks print it: 9 faults with 3 frames.
    #[test]
    fn the_textbook_example() {
        let keys = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1];
        assert_eq!(keys.len() as u64 - hits(&keys, 3, Rule::Demand), 9);
    }

    #[test]
    fn a_loop_tells_the_rules_apart() {
        let keys: Vec<u64> = "loop:100:10000".parse::<Synthetic>().unwrap().requests().map(|r| r.key).collect();
        // Bypass keeps 10 of 100 for good; MIN keeps 9 and passes the rest through the tenth place.
        assert_eq!(hits(&keys, 10, Rule::Bypass), 990);
        assert_eq!(hits(&keys, 10, Rule::Demand), 900);
        assert_eq!(hits(&keys, 100, Rule::Demand), 9900);
        assert_eq!(hits(&keys, u64::MAX, Rule::Bypass), 9900);
    }
}
