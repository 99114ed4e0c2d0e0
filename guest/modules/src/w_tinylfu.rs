//! W-TinyLFU: newcomers pass a small LRU window; to get beyond it, one must have been seen more often than whom one
//! would replace.
//!
//! Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", ACM Transactions on Storage 2017,
//! and Einziger, Eytan, Friedman and Manes, "Adaptive Software Cache Management", Middleware 2018; as in Caffeine. The
//! rest of the cache is a segmented LRU: probation, and protected for what was read since it was admitted. A sketch
//! counts how often each fingerprint came lately, residents and strangers alike.
//!
//! **How large the window should be** decides whether recency or frequency rules. Caffeine climbs: it changes the size,
//! measures the hit ratio over ten times the capacity, and goes on or turns around. The gain of one step drowns in the
//! noise of such a sample, and a short trace leaves time for a handful of steps. Here every miss can testify: what was
//! turned away from the window, or evicted from the rest, leaves a ghost for as long as a tenth of the capacity more would
//! have kept it. If it comes back meanwhile, that part should have been larger, and the window moves by the weight of
//! the entry. Over 36 cells of real traces the mean hit ratio was 33.0 %; with the climb 31.6 % (32.5 % if it
//! samples only as many requests as the capacity), with the best fixed window 32.4 %.
//!
//! What a part would gain, the other would lose, and whoever is lost leaves no ghost until it is too late: in a loop, a lap
//! later. So who comes back counts in proportion to how often it was seen, measured by the one that would go for
//! it; and each hit on probation, which a smaller main part would have lost first, speaks a little for that part.
//!
//! Hits count only once the cache has been full. Until then nobody competes, and the first to come collect for longest:
//! with those counts, residents of a phase that is over stood in the way of its successors (0.5 points in a loop of which
//! most fits). Over 223 cells of ten traces, this and the proportion gained 0.05 points in the mean; 1.0 at best, and
//! 0.8 lost at worst.
//!
//! Three more departures, each measured: the sketch updates conservatively; for small caches it is larger than they
//! call for; and a candidate's last arrival does not count in the comparison, once the sketch has aged. If it did, a loop
//! over more keys than fit would let each newcomer win against a resident whose count was just halved. Before that it
//! counts for one candidate in two: never, and a large cache passes by up to 3 points while it fills; always, and
//! a loop turns a small one over.
//!
//! Weighted entries: a candidate must have been seen more often than all whom it would replace together (Einziger,
//! Eytan, Friedman and Manes, "Lightweight Robust Size Aware Cache Management", 2021).
//!
//! 13 bytes a resident, 8 to 16 for the sketch, and 2 for the ghosts.

use alloc::vec::Vec;

use larder_guest::kit::{BySlot, Ghosts, Memo, Recollection, Segments, Sketch, fold};
use larder_guest::{About, Arrival, Change, Eviction, Limits, ParameterSpec, Parameters, Refusal, Slot, Victims};

/// Newcomers, by recency.
const WINDOW: usize = 0;
/// Admitted and not read since, or not lately, by recency.
const PROBATION: usize = 1;
/// Read since they were admitted, by recency.
const PROTECTED: usize = 2;

/// Of what the window leaves.
const PROTECTED_SHARE: f64 = 0.8;
/// Bounds on the window, shares of the capacity.
const WINDOW_BOUNDS: (f64, f64) = (0.01, 0.8);
/// How much larger than it is a part can imagine itself, as a share of the capacity: the bound on the ghosts of each.
const GHOST_SHARE: f64 = 0.1;
/// A return to the window counts so much at most, however rare the one that would go for it.
const MOST_WINDOW_EVIDENCE: f64 = 4.0;
/// A return to the main part counts so much at most. A stranger turned away that comes again proves one hit; a resident was
/// let in because it had many.
const MOST_MAIN_EVIDENCE: f64 = 2.0;
/// A hit on probation counts so much for the main part: little, for most are far from the end that it would lose.
const PROBATION_EVIDENCE: f64 = 0.02;
/// Room in the sketch even for smaller caches: 4 KiB, so that a cache of 10 entries remembers more than 10 keys.
const SKETCH_ROOM: u32 = 512;
/// How many victims one candidate is compared with: a bound on the work where a heavy one meets many light ones.
const MOST_COMPARED: usize = 128;
/// How many leave a window that shrank in one call, where nobody has to go: the others follow with the next.
const MOST_MOVED: u32 = 128;
/// Seen so often, a candidate that loses is let in once in 128 times: against keys chosen to collide in the sketch.
const WARM: u32 = 6;

/// Of what is written for a successor.
const VERSION: u32 = 3;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::number("window", "Share of the capacity that the window begins with", 0.01, 0.0, 1.0),
    ParameterSpec::flag("adapt", "Whether the window changes with what comes back", true),
];

/// A frequency sketch decides who passes from an LRU window, of a size that adapts, into a segmented LRU.
#[derive(Debug)]
pub struct WTinyLfu {
    segments: Segments<3>,
    fingerprints: BySlot<u32>,
    sketch: Sketch,
    /// What the window may weigh; a fraction, for the steps may be.
    window: f64,
    /// `window` in whole units, at least 1.
    window_share: u64,
    protected_share: u64,
    /// Whom a larger window would have kept, and whom a larger main part would have.
    turned_away: Ghosts,
    evicted: Ghosts,
    adapt: bool,
    /// Whether there was ever too much for the cache: until then hits are not counted.
    was_full: bool,
    random: u64,
    /// While residents are adopted: how many of the next are on probation, and then in the window, where the predecessor
    /// said so.
    to_come: Option<[u32; 2]>,
}

impl WTinyLfu {
    fn set_window(&mut self, window: f64) {
        let capacity = self.segments.capacity();
        self.window = window;
        self.window_share = (window as u64).clamp(1, capacity);
        self.protected_share = ((capacity - self.window_share) as f64 * PROTECTED_SHARE) as u64;
        self.demote();
    }

    /// An arrival testifies for the part that let it go too early.
    fn adapt(&mut self, folded: u32, weight: u32) {
        let ghost = u64::from(folded);
        let was_turned_away = self.turned_away.remove(ghost, weight);
        let was_evicted = self.evicted.remove(ghost, weight);
        let mut evidence = 0.0;
        if was_turned_away {
            evidence += self.worth(folded, self.main_victim()).min(MOST_WINDOW_EVIDENCE);
        }
        if was_evicted {
            evidence -= MOST_MAIN_EVIDENCE * self.worth(folded, self.segments.front(WINDOW)).min(1.0);
        }
        if evidence != 0.0 {
            let (least, most) = WINDOW_BOUNDS;
            let capacity = self.segments.capacity() as f64;
            self.set_window((self.window + evidence * f64::from(weight)).clamp(least * capacity, most * capacity));
        }
    }

    /// How often this one was seen for each time that the other was, whose place it would have.
    fn worth(&self, folded: u32, other: Option<Slot>) -> f64 {
        let uses = |folded| f64::from(self.sketch.estimate(folded).max(1));
        uses(folded) / other.map_or(1.0, |slot| uses(self.fingerprints.get(slot)))
    }

    /// A hit that the main part would lose first if it were smaller. The window follows with the next ghost: a hit shall
    /// cost no more than this.
    #[inline]
    fn hold(&mut self, slot: Slot) {
        let least = WINDOW_BOUNDS.0 * self.segments.capacity() as f64;
        self.window = (self.window - PROBATION_EVIDENCE * f64::from(self.segments.weight(slot))).max(least);
    }

    /// The least recent of the protected go back on probation until the rest have their share.
    #[inline]
    fn demote(&mut self) {
        while self.segments.load(PROTECTED) > self.protected_share {
            self.segments.shift(PROTECTED, PROBATION);
        }
    }

    /// Whom the main part would lose first.
    #[inline]
    fn main_victim(&self) -> Option<Slot> {
        self.segments.front(PROBATION).or(self.segments.front(PROTECTED))
    }

    fn evict(&mut self, slot: Slot, victims: &mut Victims) {
        let in_window = self.segments.list_of(slot) == WINDOW;
        let weight = self.segments.remove(slot);
        if self.adapt {
            let ghost = u64::from(self.fingerprints.get(slot));
            if in_window { &mut self.turned_away } else { &mut self.evicted }.insert(ghost, weight);
        }
        victims.push(slot);
    }

    /// Whether the candidate was seen more often than all those that would have to go to free `excess`, before it came
    /// this time or with it.
    fn admits(&mut self, candidate: Slot, excess: u64) -> bool {
        let last = self.sketch.has_aged() || self.draw() & 1 == 0;
        let uses = self.sketch.estimate(self.fingerprints.get(candidate)).saturating_sub(u32::from(last));
        let (mut freed, mut their_uses) = (0, 0);
        let lists = self.segments.lists();
        for victim in lists.iter(PROBATION).chain(lists.iter(PROTECTED)).take(MOST_COMPARED) {
            if freed >= excess || their_uses >= uses {
                break;
            }
            freed += u64::from(self.segments.weight(victim));
            their_uses += self.sketch.estimate(self.fingerprints.get(victim));
        }
        (uses > their_uses && freed > 0) || (uses >= WARM && self.draw() & 127 == 0)
    }

    /// xorshift64.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn excess(&self) -> u64 {
        self.segments.total().saturating_sub(self.segments.capacity())
    }

    /// What is too much for the window stands for admission; what is too much for the cache is evicted.
    fn make_room(&mut self, victims: &mut Victims) {
        self.was_full |= self.excess() > 0;
        let mut moved = 0;
        while self.segments.load(WINDOW) > self.window_share {
            let Some(candidate) = self.segments.front(WINDOW) else { break };
            let excess = self.excess();
            if excess == 0 {
                if moved == MOST_MOVED {
                    break;
                }
                moved += 1;
            }
            if excess > 0 && !self.admits(candidate, excess) {
                self.evict(candidate, victims);
                continue;
            }
            while self.excess() > 0
                && let Some(victim) = self.main_victim()
            {
                self.evict(victim, victims);
            }
            self.segments.move_to_back(PROBATION, candidate);
        }
        // The window has less than its share: it grew, or entries were adopted.
        while self.excess() > 0 {
            let Some(victim) = self.main_victim().or(self.segments.front(WINDOW)) else { break };
            self.evict(victim, victims);
        }
    }

    /// An entry comes.
    fn enter(&mut self, arrival: &Arrival, uses: u32, list: usize) {
        let folded = fold(arrival.fingerprint);
        if self.adapt {
            self.adapt(folded, arrival.weight);
        }
        self.fingerprints.set(arrival.slot, folded);
        if list == WINDOW && u64::from(arrival.weight) > self.window_share {
            // Too heavy for the window: it stands for admission at once, before it drives the others out.
            self.segments.push_front(WINDOW, arrival.slot, arrival.weight);
        } else {
            self.segments.push_back(list, arrival.slot, arrival.weight);
        }
        let lists = self.segments.lists();
        self.sketch.make_room((lists.len(WINDOW) + lists.len(PROBATION) + lists.len(PROTECTED)).max(SKETCH_ROOM));
        self.sketch.add(folded, uses);
    }
}

impl Eviction for WTinyLfu {
    const ABOUT: About = About::new(
        "w-tinylfu",
        env!("CARGO_PKG_VERSION"),
        "Admits by frequency past an LRU window that adapts: strong on skew, loops and scans (Einziger et al., 2017/18)",
    )
    .with_parameters(PARAMETERS);

    fn open(limits: &Limits, parameters: &Parameters) -> Result<Self, Refusal> {
        let ghosts = ((limits.capacity as f64 * GHOST_SHARE) as u64).max(1);
        let mut policy = WTinyLfu {
            segments: Segments::new(limits),
            fingerprints: BySlot::new(limits),
            sketch: Sketch::new(),
            window: 0.0,
            window_share: 0,
            protected_share: 0,
            turned_away: Ghosts::new(ghosts),
            evicted: Ghosts::new(ghosts),
            adapt: parameters.flag("adapt"),
            was_full: false,
            // xorshift stays at 0.
            random: limits.seed | 1,
            to_come: None,
        };
        policy.set_window(limits.capacity as f64 * parameters.number("window"));
        Ok(policy)
    }

    #[inline]
    fn touch(&mut self, slot: Slot, times: u32) {
        if self.was_full {
            self.sketch.add(self.fingerprints.get(slot), times);
        }
        let list = self.segments.list_of(slot);
        if list == WINDOW {
            self.segments.move_to_back(WINDOW, slot);
        } else {
            if list == PROBATION && self.was_full && self.adapt {
                self.hold(slot);
            }
            self.segments.move_to_back(PROTECTED, slot);
            self.demote();
        }
    }

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        self.enter(arrival, 1, WINDOW);
        self.make_room(victims);
    }

    fn depart(&mut self, slot: Slot) {
        self.segments.remove(slot);
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.segments.reweigh(change.slot, change.weight);
        self.demote();
        self.make_room(victims);
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        for list in [PROBATION, WINDOW, PROTECTED] {
            for slot in self.segments.lists().iter(list) {
                each(slot, self.sketch.estimate(self.fingerprints.get(slot)).saturating_sub(1));
            }
        }
    }

    /// The best come last, so each enters as protected, and the first of those are demoted. The window stays empty, and
    /// fills as the main part makes way. Where the predecessor's sketch is there, each goes where it was.
    fn adopt(&mut self, resident: &Arrival, uses: u32, victims: &mut Victims) {
        if let Some([probation, window]) = &mut self.to_come {
            let list = match (*probation, *window) {
                (0, 0) => PROTECTED,
                (0, _) => WINDOW,
                _ => PROBATION,
            };
            *if list == WINDOW { window } else { probation } -= u32::from(list != PROTECTED);
            self.fingerprints.set(resident.slot, fold(resident.fingerprint));
            self.segments.push_back(list, resident.slot, resident.weight);
            self.demote();
            while self.excess() > 0 {
                let Some(victim) = self.main_victim().or(self.segments.front(WINDOW)) else { break };
                self.evict(victim, victims);
            }
            return;
        }
        self.enter(resident, uses.saturating_add(1), PROTECTED);
        self.demote();
        self.make_room(victims);
    }

    fn learned(&self) -> Vec<u8> {
        let mut memo = Memo::new(VERSION);
        memo.number(self.window / self.segments.capacity() as f64);
        memo.word(u32::from(self.was_full));
        memo.word(self.segments.lists().len(PROBATION));
        memo.word(self.segments.lists().len(WINDOW));
        self.turned_away.write(&mut memo);
        self.evicted.write(&mut memo);
        self.sketch.write(&mut memo);
        memo.into_bytes()
    }

    fn recall(&mut self, learned: &[u8]) -> bool {
        let read = || {
            let mut memo = Recollection::of(learned, VERSION)?;
            let window = memo.number().filter(|share| (0.0..=1.0).contains(share))?;
            let was_full = memo.word()? != 0;
            let to_come = [memo.word()?, memo.word()?];
            let ghosts = [self.turned_away.bound(), self.evicted.bound()].map(|bound| Ghosts::read(bound, &mut memo));
            Some((window, was_full, to_come, ghosts, Sketch::read(&mut memo)?))
        };
        let Some((window, was_full, to_come, [Some(turned_away), Some(evicted)], sketch)) = read() else {
            return false;
        };
        self.to_come = Some(to_come);
        self.was_full = was_full;
        (self.turned_away, self.evicted, self.sketch) = (turned_away, evicted, sketch);
        if self.adapt {
            self.set_window(window * self.segments.capacity() as f64);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cache;

    #[test]
    fn only_the_more_frequent_pass_the_window() {
        // Of 10 entries, the window has 1: 10 is in it, having driven out 9, and the others were read.
        let mut cache = Cache::<WTinyLfu>::of(10, (0..11).chain(0..9));
        assert_eq!(cache.request_all(100..200), 0);
        assert_eq!(cache.order()[..1], [0]);
        assert_eq!(cache.request_all(0..9), 9, "strangers replaced each other");
        // Seen three times before, and three are more than two.
        cache.request_all([50, 51, 50, 52, 50, 53, 50, 54]);
        cache.request_all([50, 55, 50, 56]);
        assert!(cache.contains(50));
    }

    #[test]
    fn most_of_a_loop_that_does_not_fit_hits() {
        let mut cache = Cache::<WTinyLfu>::of(100, (0..100).flat_map(|_| 0..300));
        let hits = cache.request_all(0..300);
        assert!(hits >= 90, "{hits} of at most 99");
    }

    #[test]
    fn the_window_follows_the_evidence() {
        // Each key comes three times within 40 requests, and never again: only recency helps.
        let bursts = (0..20_000u64).map(|n| n / 3 + [0, 13, 26][n as usize % 3]);
        let mut cache = Cache::<WTinyLfu>::of(400, bursts);
        assert!(cache.policy.window > 20.0, "{}", cache.policy.window);
        // Twice as many keys as fit, over and over: only frequency helps.
        cache.request_all((0..50).flat_map(|_| 1_000_000..1_000_800));
        cache.request_all((0..60_000).map(|n| 2_000_000 + larder_guest::testkit::fingerprint(n) % 520));
        assert!(cache.policy.window < 20.0, "{}", cache.policy.window);
    }

    #[test]
    fn hits_before_the_cache_was_full_do_not_count() {
        let mut cache = Cache::<WTinyLfu>::of(10, (0..9).flat_map(|key| [key; 5]).chain([9]));
        // All that are there came once, and 50 comes back twice.
        cache.request_all([50, 51, 50, 52, 50, 53]);
        assert!(cache.contains(50));
    }

    #[test]
    fn who_comes_back_counts_by_whom_it_would_cost() {
        let returns = |reads: u64| {
            let mut cache = Cache::<WTinyLfu>::of(100, 0..101);
            cache.request_all((0..reads).flat_map(|_| 0..99));
            // Strangers in pairs, too far apart for the window, and near enough for its ghosts.
            cache.request_all((0..60u64).flat_map(|n| [1000 + n, 1000 + n.saturating_sub(4)]));
            cache.policy.window
        };
        let (seldom, often) = (returns(1), returns(8));
        assert!(often < seldom, "a window of {often} in front of what is read often, {seldom} of what is not");
    }

    #[test]
    fn a_heavy_candidate_must_be_worth_all_that_it_replaces() {
        let mut cache = Cache::<WTinyLfu>::of(10, (0..11).chain(0..9).chain(0..9));
        for _ in 0..6 {
            cache.request(77, 5);
        }
        assert!(!cache.contains(77), "5 uses are less than 5 times 3");
        assert_eq!(cache.order().len(), 10, "and nobody else went");
    }

    #[test]
    fn a_swap_for_itself_keeps_residents_and_their_frequency() {
        let mut cache = Cache::<WTinyLfu>::of(10, (0..11).chain(0..9).chain([10])).swapped::<WTinyLfu>(10);
        cache.request_all(100..200);
        assert!(cache.request_all(0..9) >= 9);
        assert!(cache.policy.was_full);
    }

    #[test]
    fn keeps_the_contract() {
        larder_guest::testkit::check::<WTinyLfu>();
    }
}
