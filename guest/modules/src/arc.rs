//! ARC: recency and frequency share the cache, and the ghosts of each say who should have had more.
//!
//! Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003. `T1` holds what was seen once
//! lately, `T2` what was seen twice or more, both by recency; `B1` and `B2` remember the fingerprints of what left
//! them, together as many as there are residents. A ghost hit in `B1` moves the target size of `T1` up, one in `B2`
//! down.
//!
//! Weighted entries: sizes are weights throughout, and a ghost hit counts by its weight. With weights of 1 it is the
//! algorithm of the paper to the letter. 13 bytes a resident and 10 to 14 for each ghost.

use alloc::vec::Vec;

use larder_guest::kit::{BySlot, Ghosts, Memo, Recollection, Segments, evict_until, fold};
use larder_guest::{About, Arrival, Change, Eviction, Limits, Parameters, Refusal, Slot, Victims};

/// Seen once lately: `T1`.
const RECENT: usize = 0;
/// Seen twice or more: `T2`.
const FREQUENT: usize = 1;

/// Of what is written for a successor.
const VERSION: u32 = 1;

/// Recency and frequency share the cache, in proportions that follow the ghosts of each.
#[derive(Debug)]
pub struct Arc {
    segments: Segments<2>,
    fingerprints: BySlot<u32>,
    /// `B1` and `B2`.
    ghosts: [Ghosts; 2],
    /// What `RECENT` should weigh: `p`. A fraction, for the steps are.
    target: f64,
}

impl Arc {
    /// Makes room for this weight.
    #[inline(never)]
    fn make_room(&mut self, weight: u32, ghost_of_frequent: bool, victims: &mut Victims) {
        let fits = |policy: &Self| policy.segments.fits(weight);
        evict_until(self, fits, |policy| policy.replace(ghost_of_frequent, victims));
    }

    /// `REPLACE` of the paper: makes a ghost of the least recent of one list.
    #[inline(always)]
    fn replace(&mut self, ghost_of_frequent: bool, victims: &mut Victims) {
        let recent = self.segments.load(RECENT) as f64;
        let above = recent > self.target || (ghost_of_frequent && recent >= self.target);
        let preferred = if above { RECENT } else { FREQUENT };
        let list = if self.segments.lists().is_empty(preferred) { 1 - preferred } else { preferred };
        let Some((victim, weight)) = self.segments.pop_front(list) else { return };
        self.ghosts[list].insert(u64::from(self.fingerprints.get(victim)), weight);
        victims.push(victim);
    }

    /// Forgets ghosts until recent residents and ghosts fit the capacity, and all of them twice the capacity.
    fn trim_ghosts(&mut self) {
        let capacity = self.segments.capacity();
        while self.segments.load(RECENT) + self.ghosts[RECENT].weight() > capacity {
            if !self.ghosts[RECENT].pop_oldest() {
                break;
            }
        }
        while self.segments.total() + self.ghosts[RECENT].weight() + self.ghosts[FREQUENT].weight() > 2 * capacity {
            if !self.ghosts[FREQUENT].pop_oldest() && !self.ghosts[RECENT].pop_oldest() {
                break;
            }
        }
    }
}

impl Eviction for Arc {
    const ABOUT: About = About::new(
        "arc",
        env!("CARGO_PKG_VERSION"),
        "Recency and frequency in proportions that follow the ghosts of each (Megiddo and Modha, FAST 03)",
    );

    fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
        Ok(Arc {
            segments: Segments::new(limits),
            fingerprints: BySlot::new(limits),
            ghosts: [(); 2].map(|()| Ghosts::new(limits.capacity.saturating_mul(2))),
            target: 0.0,
        })
    }

    #[inline]
    fn touch(&mut self, slot: Slot, _: u32) {
        self.segments.move_to_back(FREQUENT, slot);
    }

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        let folded = fold(arrival.fingerprint);
        let weights = self.ghosts.each_ref().map(|ghosts| ghosts.weight() as f64);
        let weight = f64::from(arrival.weight);
        let was_recent = self.ghosts[RECENT].remove(u64::from(folded), arrival.weight);
        let was_frequent = !was_recent && self.ghosts[FREQUENT].remove(u64::from(folded), arrival.weight);
        if was_recent {
            let step = (weights[FREQUENT] / weights[RECENT]).max(1.0) * weight;
            self.target = (self.target + step).min(self.segments.capacity() as f64);
        } else if was_frequent {
            let step = (weights[RECENT] / weights[FREQUENT]).max(1.0) * weight;
            self.target = (self.target - step).max(0.0);
        }
        self.make_room(arrival.weight, was_frequent, victims);
        let list = if was_recent || was_frequent { FREQUENT } else { RECENT };
        self.fingerprints.set(arrival.slot, folded);
        self.segments.push_back(list, arrival.slot, arrival.weight);
        self.trim_ghosts();
    }

    fn depart(&mut self, slot: Slot) {
        self.segments.remove(slot);
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.segments.reweigh(change.slot, change.weight);
        self.make_room(0, false, victims);
        self.trim_ghosts();
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        self.segments.lists().iter(RECENT).for_each(|slot| each(slot, 0));
        self.segments.lists().iter(FREQUENT).for_each(|slot| each(slot, 1));
    }

    fn adopt(&mut self, resident: &Arrival, uses: u32, victims: &mut Victims) {
        self.make_room(resident.weight, false, victims);
        self.fingerprints.set(resident.slot, fold(resident.fingerprint));
        self.segments.push_back(if uses > 0 { FREQUENT } else { RECENT }, resident.slot, resident.weight);
    }

    fn learned(&self) -> Vec<u8> {
        let mut memo = Memo::new(VERSION);
        memo.number(self.target);
        self.ghosts.iter().for_each(|ghosts| ghosts.write(&mut memo));
        memo.into_bytes()
    }

    fn recall(&mut self, learned: &[u8]) -> bool {
        let read = || {
            let mut memo = Recollection::of(learned, VERSION)?;
            let target = memo.number()?;
            let bound = self.ghosts[RECENT].bound();
            Some((target, [Ghosts::read(bound, &mut memo)?, Ghosts::read(bound, &mut memo)?]))
        };
        let Some((target, ghosts)) = read() else { return false };
        self.target = target.clamp(0.0, self.segments.capacity() as f64);
        self.ghosts = ghosts;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cache;

    #[test]
    fn ghosts_move_the_target() {
        let mut cache = Cache::<Arc>::of(4, [1, 2, 3, 4, 1, 2]);
        assert_eq!(cache.order(), [3, 4, 1, 2], "T1 = 3 4, T2 = 1 2");
        cache.request(5, 1);
        assert_eq!(cache.order(), [4, 5, 1, 2], "T1 is above its target of 0: 3 goes to B1");
        cache.request(3, 1);
        assert_eq!((cache.order().as_slice(), cache.policy.target), ([5, 1, 2, 3].as_slice(), 1.0));
        cache.request(6, 1);
        assert_eq!(cache.order(), [5, 6, 2, 3], "T1 is at its target: 1 goes to B2");
        cache.request(1, 1);
        assert_eq!((cache.order().as_slice(), cache.policy.target), ([6, 2, 3, 1].as_slice(), 0.0));
    }

    #[test]
    fn a_step_is_the_proportion_of_the_ghosts() {
        // T2 = 1 2 3 4; then 5 to 8 push 1 to 3 out into B2 and leave 5 to 7 in B1.
        let mut cache = Cache::<Arc>::of(4, [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(cache.order(), [7, 2, 3, 4], "B1 = 5 6, B2 = 1");
        cache.request(1, 1);
        assert_eq!(cache.policy.target, 0.0);
        assert_eq!(cache.order(), [2, 3, 4, 1], "B1 = 5 6 7, B2 is empty");
        cache.request(5, 1);
        assert_eq!((cache.order().as_slice(), cache.policy.target), ([3, 4, 1, 5].as_slice(), 1.0));
        cache.request(2, 1);
        assert_eq!(cache.policy.target, 0.0, "B1 = 6 7 against B2 = 2: down by 2, no further than 0");
    }

    #[test]
    fn what_leaves_a_t1_that_fills_the_cache_leaves_no_ghost() {
        let mut cache = Cache::<Arc>::of(4, 1..=5);
        assert!(!cache.request(1, 1));
        assert_eq!((cache.order().as_slice(), cache.policy.target), ([3, 4, 5, 1].as_slice(), 0.0));
    }

    #[test]
    fn a_swap_for_itself_keeps_the_order() {
        let cache = Cache::<Arc>::of(4, [1, 2, 3, 4, 1, 2, 5, 3]);
        assert_eq!(cache.swapped::<Arc>(4).order(), cache.order());
    }

    #[test]
    fn keeps_the_contract() {
        larder_guest::testkit::check::<Arc>();
    }
}
