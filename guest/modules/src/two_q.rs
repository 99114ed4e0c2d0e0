//! 2Q: a key must come twice, and not at once, to get among the residents that are kept by recency.
//!
//! Johnson and Shasha, "2Q: A Low Overhead High Performance Buffer Management Replacement Algorithm", VLDB 1994, the full
//! version. Newcomers pass through a FIFO, `A1in`. What falls out of it leaves a ghost in `A1out`. Who comes
//! back while the ghost is remembered was wanted at two moments apart, and enters `Am`, an LRU. Reads within `A1in`
//! change nothing: they are one use, correlated.
//!
//! 13 bytes a resident, and 10 to 14 for each of half as many ghosts.

use alloc::vec::Vec;

use larder_guest::kit::{BySlot, Ghosts, Memo, Recollection, Segments, evict_until, fold};
use larder_guest::{About, Arrival, Change, Eviction, Limits, ParameterSpec, Parameters, Refusal, Slot, Victims};

/// The FIFO of newcomers.
const IN: usize = 0;
/// The LRU of those that came back.
const MAIN: usize = 1;

/// Of what is written for a successor.
const VERSION: u32 = 1;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::number("in-share", "Share of the capacity for newcomers (Kin)", 0.25, 0.0, 1.0),
    ParameterSpec::number("out-share", "Weight of the ghosts, as a share of the capacity (Kout)", 0.5, 0.0, 10.0),
];

/// Newcomers pass through a FIFO; who comes back after it is kept by recency.
#[derive(Debug)]
pub struct TwoQ {
    segments: Segments<2>,
    fingerprints: BySlot<u32>,
    /// Who fell out of the FIFO: `A1out`, bounded by `Kout`.
    out: Ghosts,
    /// The weight up to which the FIFO is left alone: `Kin`.
    in_share: u64,
}

impl TwoQ {
    /// Makes room for this weight.
    #[inline(never)]
    fn make_room(&mut self, weight: u32, victims: &mut Victims) {
        evict_until(self, |policy| policy.segments.fits(weight), |policy| policy.evict_one(victims));
    }

    #[inline(always)]
    fn evict_one(&mut self, victims: &mut Victims) {
        let from_in = self.segments.load(IN) > self.in_share || self.segments.lists().is_empty(MAIN);
        let Some((victim, weight)) = self.segments.pop_front(if from_in { IN } else { MAIN }) else { return };
        if from_in {
            self.out.insert(u64::from(self.fingerprints.get(victim)), weight);
        }
        victims.push(victim);
    }
}

impl Eviction for TwoQ {
    const ABOUT: About = About::new(
        "2q",
        env!("CARGO_PKG_VERSION"),
        "Keeps by recency what came back after a first stay: scans pass through (Johnson and Shasha, VLDB 94)",
    )
    .with_parameters(PARAMETERS);

    fn open(limits: &Limits, parameters: &Parameters) -> Result<Self, Refusal> {
        let share = |name| (limits.capacity as f64 * parameters.number(name)) as u64;
        Ok(TwoQ {
            segments: Segments::new(limits),
            fingerprints: BySlot::new(limits),
            out: Ghosts::new(share("out-share").max(1)),
            in_share: share("in-share"),
        })
    }

    #[inline]
    fn touch(&mut self, slot: Slot, _: u32) {
        if self.segments.list_of(slot) == MAIN {
            self.segments.move_to_back(MAIN, slot);
        }
    }

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        let folded = fold(arrival.fingerprint);
        let came_back = self.out.remove(u64::from(folded), arrival.weight);
        self.make_room(arrival.weight, victims);
        self.fingerprints.set(arrival.slot, folded);
        self.segments.push_back(if came_back { MAIN } else { IN }, arrival.slot, arrival.weight);
    }

    fn depart(&mut self, slot: Slot) {
        self.segments.remove(slot);
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.segments.reweigh(change.slot, change.weight);
        self.make_room(0, victims);
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        self.segments.lists().iter(IN).for_each(|slot| each(slot, 0));
        self.segments.lists().iter(MAIN).for_each(|slot| each(slot, 1));
    }

    fn adopt(&mut self, resident: &Arrival, uses: u32, victims: &mut Victims) {
        self.make_room(resident.weight, victims);
        self.fingerprints.set(resident.slot, fold(resident.fingerprint));
        self.segments.push_back(if uses > 0 { MAIN } else { IN }, resident.slot, resident.weight);
    }

    fn learned(&self) -> Vec<u8> {
        let mut memo = Memo::new(VERSION);
        self.out.write(&mut memo);
        memo.into_bytes()
    }

    fn recall(&mut self, learned: &[u8]) -> bool {
        let out = Recollection::of(learned, VERSION).and_then(|mut memo| Ghosts::read(self.out.bound(), &mut memo));
        out.map(|out| self.out = out).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cache;

    /// Capacity 4: Kin is 1, Kout is 2.
    #[test]
    fn who_comes_back_from_a1out_enters_am() {
        let mut cache = Cache::<TwoQ>::of(4, [1, 2, 3, 4]);
        assert!(cache.request(1, 1));
        assert_eq!(cache.order(), [1, 2, 3, 4], "all are newcomers, and a read among those moves nothing");
        cache.request(5, 1);
        assert_eq!(cache.order(), [2, 3, 4, 5], "A1in is above Kin: its oldest goes to A1out");
        assert!(!cache.request(1, 1), "only a ghost");
        cache.request_all([6, 7]);
        assert_eq!(cache.order(), [5, 6, 7, 1], "1 is in Am, which is left alone while A1in is above Kin");
        cache.request_all([3, 4]);
        assert_eq!(cache.order(), [7, 1, 3, 4]);
        cache.request(6, 1);
        assert_eq!(cache.order(), [7, 3, 4, 6], "A1in is at Kin: the least recent of Am goes, and leaves no ghost");
        cache.request(1, 1);
        assert_eq!(cache.order(), [7, 1, 4, 6], "so 1 is a newcomer");
    }

    #[test]
    fn ghosts_fall_off_after_kout() {
        let mut cache = Cache::<TwoQ>::of(4, 1..=7);
        cache.request_all([1, 8, 9]);
        assert_eq!(cache.order(), [7, 1, 8, 9], "1 was forgotten for 2 and 3: a newcomer, in FIFO order");
    }

    #[test]
    fn a_scan_passes_through() {
        let mut cache = Cache::<TwoQ>::of(8, (1..=12).chain(1..=4).chain(100..10_000));
        assert_eq!(cache.request_all(1..=4), 4);
    }

    #[test]
    fn a_swap_for_itself_keeps_the_order() {
        let cache = Cache::<TwoQ>::of(8, (1..=12).chain(1..=4));
        assert_eq!(cache.swapped::<TwoQ>(8).order(), cache.order());
    }

    #[test]
    fn keeps_the_contract() {
        larder_guest::testkit::check::<TwoQ>();
    }
}
