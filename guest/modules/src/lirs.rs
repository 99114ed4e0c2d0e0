//! LIRS: ranks by the distance between the last two uses, not by the last use alone.
//!
//! Jiang and Zhang, "LIRS: An Efficient Low Inter-reference Recency Set Replacement Policy to Improve Buffer Cache
//! Performance", SIGMETRICS 2002. Nearly all of the cache belongs to blocks whose last two uses were close together
//! (LIR). The rest (HIR, 1 %) pass through a small queue. A HIR block that is used again while it is in the stack, that
//! is more recently used than the last LIR block, has the smaller distance of the two: they swap roles.
//!
//! **There is no stack.** The paper keeps LIR, HIR and departed blocks in one stack by recency, and prunes its bottom
//! until that is a LIR block. So to be in the stack is to be more recent than the least recent LIR block, and a
//! counter stamped on each use tells that by one comparison. What is left are two LRU lists of residents, and a queue
//! of ghosts with their stamps, which are in order by themselves: no pruning walk, and a touch moves one slot.
//!
//! The number of ghosts, unbounded in the paper, is bounded by a parameter. 17 bytes a resident and 20 to 35 a ghost.

use alloc::vec::Vec;

use larder_guest::kit::{BySlot, GhostQueue, Memo, Recollection, Segments, evict_until, fold};
use larder_guest::{About, Arrival, Change, Eviction, Limits, ParameterSpec, Parameters, Refusal, Slot, Victims};

/// High inter-reference recency: the queue `Q`, from which victims come.
const HIR: usize = 0;
/// Low inter-reference recency.
const LIR: usize = 1;

/// Of what is written for a successor.
const VERSION: u32 = 1;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::number("hir-share", "Share of the capacity for blocks on probation (HIR)", 0.01, 0.0, 0.99),
    ParameterSpec::number("ghost-share", "Weight of the ghosts, as a share of the capacity", 1.0, 0.0, 10.0),
];

/// Ranks by the distance between the last two uses.
#[derive(Debug)]
pub struct Lirs {
    segments: Segments<2>,
    fingerprints: BySlot<u32>,
    /// When each resident was last used, on `clock`.
    stamps: BySlot<u32>,
    /// Counts uses.
    clock: u32,
    /// Departed HIR blocks, and when each was last used.
    ghosts: GhostQueue<u32>,
    lir_share: u64,
    ghost_share: u64,
    /// While residents are adopted: fingerprint and stamp by slot, where the predecessor said so.
    recalled: Option<(Vec<u32>, Vec<u32>)>,
}

/// Whether something used at `stamp` is more recent than the bottom of the stack.
#[inline]
fn is_above(stamp: u32, bottom: Option<u32>) -> bool {
    bottom.is_none_or(|bottom| stamp > bottom)
}

impl Lirs {
    fn stamp(&mut self) -> u32 {
        if self.clock == u32::MAX {
            self.turn_back_clock();
        }
        self.clock += 1;
        self.clock
    }

    /// Once in two thousand million uses: what was not used in the first half of these is equally old from now on.
    fn turn_back_clock(&mut self) {
        const HALF: u32 = 1 << 31;
        self.clock -= HALF;
        self.stamps.values_mut().iter_mut().for_each(|stamp| *stamp = stamp.saturating_sub(HALF));
        self.ghosts.for_each_note(|stamp| *stamp = stamp.saturating_sub(HALF));
    }

    /// Whether something used at `stamp` is in the stack.
    #[inline]
    fn in_stack(&self, stamp: u32) -> bool {
        is_above(stamp, self.bottom())
    }

    /// When the least recent LIR block was used, with which the stack ends; none: nothing is below it.
    #[inline]
    fn bottom(&self) -> Option<u32> {
        self.segments.front(LIR).map(|bottom| self.stamps.get(bottom))
    }

    /// The least recent LIR blocks become HIR until the rest have their share; not the most recent, however heavy.
    #[inline]
    fn demote(&mut self) {
        while self.segments.load(LIR) > self.lir_share && self.segments.lists().len(LIR) > 1 {
            self.segments.shift(LIR, HIR);
        }
    }

    /// Makes room for this weight.
    #[inline(never)]
    fn make_room(&mut self, weight: u32, victims: &mut Victims) {
        evict_until(self, |policy| policy.segments.fits(weight), |policy| policy.evict_one(victims));
    }

    #[inline(always)]
    fn evict_one(&mut self, victims: &mut Victims) {
        let list = if self.segments.lists().is_empty(HIR) { LIR } else { HIR };
        let Some((victim, weight)) = self.segments.pop_front(list) else { return };
        let stamp = self.stamps.get(victim);
        if list == HIR && self.in_stack(stamp) {
            self.ghosts.push(self.fingerprints.get(victim), stamp, weight);
        }
        victims.push(victim);
    }

    /// Forgets ghosts that fell out of the stack, and those above the bound.
    #[inline]
    fn trim_ghosts(&mut self) {
        let (bottom, most) = (self.bottom(), self.ghost_share);
        self.ghosts.forget_while(|weight, stamp| weight > most || !is_above(stamp, bottom));
    }
}

impl Eviction for Lirs {
    const ABOUT: About = About::new(
        "lirs",
        env!("CARGO_PKG_VERSION"),
        "Ranks by the distance between the last two uses: strong on loops and scans (Jiang and Zhang, SIGMETRICS 02)",
    )
    .with_parameters(PARAMETERS);

    fn open(limits: &Limits, parameters: &Parameters) -> Result<Self, Refusal> {
        let share = |name| (limits.capacity as f64 * parameters.number(name)) as u64;
        Ok(Lirs {
            segments: Segments::new(limits),
            fingerprints: BySlot::new(limits),
            stamps: BySlot::new(limits),
            clock: 0,
            ghosts: GhostQueue::new(),
            lir_share: limits.capacity - share("hir-share").max(1),
            ghost_share: share("ghost-share"),
            recalled: None,
        })
    }

    #[inline]
    fn touch(&mut self, slot: Slot, _: u32) {
        let now = self.stamp();
        if self.segments.list_of(slot) == HIR {
            if !self.in_stack(self.stamps.get(slot)) {
                self.stamps.set(slot, now);
                self.segments.move_to_back(HIR, slot);
                return;
            }
            self.segments.move_to_back(LIR, slot);
            self.stamps.set(slot, now);
            self.demote();
        } else {
            self.stamps.set(slot, now);
            self.segments.move_to_back(LIR, slot);
        }
    }

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        let folded = fold(arrival.fingerprint);
        let came_back = self.ghosts.take(folded).is_some_and(|(stamp, _)| self.in_stack(stamp));
        self.make_room(arrival.weight, victims);
        let now = self.stamp();
        self.fingerprints.set(arrival.slot, folded);
        self.stamps.set(arrival.slot, now);
        let lir_has_room = self.segments.load(LIR) + u64::from(arrival.weight) <= self.lir_share;
        let list = if came_back || lir_has_room { LIR } else { HIR };
        self.segments.push_back(list, arrival.slot, arrival.weight);
        if came_back {
            self.demote();
        }
        self.trim_ghosts();
    }

    fn depart(&mut self, slot: Slot) {
        self.segments.remove(slot);
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.segments.reweigh(change.slot, change.weight);
        self.demote();
        self.make_room(0, victims);
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        self.segments.lists().iter(HIR).for_each(|slot| each(slot, 0));
        self.segments.lists().iter(LIR).for_each(|slot| each(slot, 1));
    }

    /// The best come last, so each takes its place among the LIR blocks, and the first of those make way. With the
    /// predecessor's stamps each goes where it was.
    fn adopt(&mut self, resident: &Arrival, uses: u32, victims: &mut Victims) {
        let at = resident.slot as usize;
        let stamp = self.recalled.as_ref().and_then(|(fingerprints, stamps)| {
            let is_it = *fingerprints.get(at)? == fold(resident.fingerprint);
            is_it.then(|| stamps.get(at).copied()).flatten()
        });
        let Some(stamp) = stamp else {
            self.arrive(resident, victims);
            self.segments.move_to_back(LIR, resident.slot);
            self.demote();
            return;
        };
        self.make_room(resident.weight, victims);
        self.fingerprints.set(resident.slot, fold(resident.fingerprint));
        self.stamps.set(resident.slot, stamp.min(self.clock));
        self.segments.push_back(if uses > 0 { LIR } else { HIR }, resident.slot, resident.weight);
        self.demote();
    }

    fn learned(&self) -> Vec<u8> {
        let mut memo = Memo::new(VERSION);
        memo.word(self.clock);
        memo.words(self.fingerprints.values());
        memo.words(self.stamps.values());
        self.ghosts.write(&mut memo);
        memo.into_bytes()
    }

    fn recall(&mut self, learned: &[u8]) -> bool {
        let read = || {
            let mut memo = Recollection::of(learned, VERSION)?;
            Some((memo.word()?, (memo.words()?, memo.words()?), GhostQueue::read(&mut memo)?))
        };
        let Some((clock, recalled, ghosts)) = read() else { return false };
        (self.clock, self.recalled, self.ghosts) = (clock, Some(recalled), ghosts);
        true
    }

    fn begin(&mut self, _: u64) {
        self.recalled = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cache;
    use larder_guest::testkit::fingerprint;

    /// Capacity 3: two LIR blocks and one HIR block.
    #[test]
    fn who_comes_back_within_the_stack_becomes_lir() {
        let mut cache = Cache::<Lirs>::of(3, [1, 2, 3]);
        assert_eq!(cache.order(), [3, 1, 2], "the first two are LIR");
        cache.request(4, 1);
        assert_eq!(cache.order(), [4, 1, 2], "3 is still in the stack");
        cache.request(3, 1);
        assert_eq!(cache.order(), [1, 2, 3], "and becomes LIR; the least recent of those becomes HIR");
        cache.request(1, 1);
        assert_eq!(cache.order(), [1, 2, 3], "1 was below the bottom of the stack: HIR still");
        cache.request(1, 1);
        assert_eq!(cache.order(), [2, 3, 1], "and now was in it");
    }

    #[test]
    fn a_ghost_that_fell_out_of_the_stack_is_a_newcomer() {
        // 3 leaves a ghost; 1 and 2 are read after it, so the bottom of the stack is above it.
        let mut cache = Cache::<Lirs>::of(3, [1, 2, 3, 4, 1, 2]);
        cache.request(3, 1);
        assert_eq!(cache.order(), [3, 1, 2]);
        assert!(cache.policy.ghosts.is_empty(), "4, which went for it, was below the bottom too");
    }

    #[test]
    fn ghosts_are_bounded() {
        let cache = Cache::<Lirs>::of(10, 0..1000);
        assert_eq!(cache.policy.ghosts.len(), 10);
    }

    #[test]
    fn most_of_a_loop_that_does_not_fit_hits() {
        let mut cache = Cache::<Lirs>::of(100, (0..10).flat_map(|_| 0..150));
        assert_eq!(cache.request_all(0..150), 99);
    }

    #[test]
    fn the_clock_may_run_out() {
        let keys = |n| fingerprint(n) % 50 * (fingerprint(!n) % 3);
        let (mut early, mut late) = (Cache::<Lirs>::of(20, []), Cache::<Lirs>::of(20, []));
        late.policy.clock = u32::MAX - 1000;
        for n in 0..3000 {
            assert_eq!(early.request(keys(n), 1), late.request(keys(n), 1), "request {n}");
        }
        assert_eq!(early.order(), late.order());
        assert!(late.policy.clock < early.policy.clock + (1 << 31));
    }

    #[test]
    fn a_swap_for_itself_keeps_the_order() {
        let cache = Cache::<Lirs>::of(3, [1, 2, 3, 4, 3]);
        assert_eq!(cache.swapped::<Lirs>(3).order(), cache.order());
    }

    #[test]
    fn keeps_the_contract() {
        larder_guest::testkit::check::<Lirs>();
    }
}
