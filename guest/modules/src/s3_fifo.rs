//! S3-FIFO: a small queue on probation, a main queue, and ghosts; nothing is ever reordered on a read.
//!
//! Yang, Zhang, Qiu, Yue and Vinayak, "FIFO Queues are All You Need for Cache Eviction", SOSP 2023. Most keys are asked
//! for once: they pass through a small FIFO and leave quickly. Who was read often enough there moves to the main
//! FIFO; who leaves unread is remembered as a ghost, and goes straight to the main queue if it comes back. The main queue
//! gives those read another round for each time, up to three.
//!
//! A touch writes one byte. 14 bytes a resident, and 10 to 14 for each of nine ghosts to ten residents.

use alloc::vec::Vec;

use larder_guest::kit::{BySlot, Ghosts, Memo, Recollection, Segments, evict_until, fold};
use larder_guest::{About, Arrival, Change, Eviction, Limits, ParameterSpec, Parameters, Refusal, Slot, Victims};

/// The queue on probation.
const SMALL: usize = 0;
/// Who came back, or was read on probation.
const MAIN: usize = 1;
/// Reads are counted up to here.
const MOST_READS: u32 = 3;

/// Of what is written for a successor.
const VERSION: u32 = 1;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::number("small-share", "Share of the capacity for the small queue", 0.1, 0.0, 1.0),
    ParameterSpec::number("ghost-share", "Weight of the ghosts, as a share of the capacity", 0.9, 0.0, 10.0),
    ParameterSpec::integer("promote-after", "Reads in the small queue that take an entry to the main one", 2, 1, 3),
];

/// A small queue on probation, a main queue, and ghosts.
#[derive(Debug)]
pub struct S3Fifo {
    segments: Segments<2>,
    /// Reads since it came, or since the main queue last gave it a round for one.
    reads: BySlot<u8>,
    fingerprints: BySlot<u32>,
    /// Who left the small queue unread.
    ghosts: Ghosts,
    /// The weight from which on the small queue is the one to evict from.
    small_share: u64,
    promote_after: u8,
    /// Before anything was evicted, what the small queue has no room for goes straight to the main one.
    full_once: bool,
    /// While residents are adopted: how many of the next are of the small queue, where the predecessor said so.
    small_to_come: Option<u32>,
}

impl S3Fifo {
    /// Makes room for this weight.
    #[inline(never)]
    fn make_room(&mut self, weight: u32, victims: &mut Victims) {
        evict_until(self, |policy| policy.segments.fits(weight), |policy| policy.evict_one(victims));
    }

    #[inline(always)]
    fn evict_one(&mut self, victims: &mut Victims) {
        self.full_once = true;
        let mut list = self.list_to_evict_from();
        while self.is_kept(list) {
            list = self.keep_first(list);
        }
        let Some((victim, weight)) = self.segments.pop_front(list) else { return };
        if list == SMALL {
            self.ghosts.insert(self.fingerprints.get(victim).into(), weight);
        }
        victims.push(victim);
    }

    #[inline]
    fn list_to_evict_from(&self) -> usize {
        let from_small = self.segments.load(SMALL) >= self.small_share || self.segments.lists().is_empty(MAIN);
        if from_small { SMALL } else { MAIN }
    }

    /// Whether the first of a list was read too often to go.
    #[inline]
    fn is_kept(&self, list: usize) -> bool {
        let enough = if list == SMALL { self.promote_after } else { 1 };
        self.segments.front(list).is_some_and(|first| self.reads.get(first) >= enough)
    }

    /// The first of a list goes to the end of the main queue; answers with the list to evict from then.
    #[inline(never)]
    fn keep_first(&mut self, list: usize) -> usize {
        if let Some(first) = self.segments.shift(list, MAIN) {
            self.reads.set(first, if list == SMALL { 0 } else { self.reads.get(first) - 1 });
        }
        self.list_to_evict_from()
    }

    fn admit(&mut self, list: usize, arrival: &Arrival) {
        self.segments.push_back(list, arrival.slot, arrival.weight);
        self.reads.set(arrival.slot, 0);
        self.fingerprints.set(arrival.slot, fold(arrival.fingerprint));
    }
}

impl Eviction for S3Fifo {
    const ABOUT: About = About::new(
        "s3-fifo",
        env!("CARGO_PKG_VERSION"),
        "Newcomers on probation in a small queue, a main queue for who comes back: good nearly everywhere (SOSP 23)",
    )
    .with_parameters(PARAMETERS);

    fn open(limits: &Limits, parameters: &Parameters) -> Result<Self, Refusal> {
        let share = |name| (limits.capacity as f64 * parameters.number(name)) as u64;
        Ok(S3Fifo {
            segments: Segments::new(limits),
            reads: BySlot::new(limits),
            fingerprints: BySlot::new(limits),
            ghosts: Ghosts::new(share("ghost-share")),
            small_share: share("small-share").max(1),
            promote_after: parameters.integer("promote-after") as u8,
            full_once: false,
            small_to_come: None,
        })
    }

    #[inline]
    fn touch(&mut self, slot: Slot, times: u32) {
        self.reads.set(slot, (u32::from(self.reads.get(slot)) + times).min(MOST_READS) as u8);
    }

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        let came_back = self.ghosts.remove(fold(arrival.fingerprint).into(), arrival.weight);
        self.make_room(arrival.weight, victims);
        let overflows = !self.full_once && self.segments.load(SMALL) >= self.small_share;
        self.admit(if came_back || overflows { MAIN } else { SMALL }, arrival);
    }

    fn depart(&mut self, slot: Slot) {
        self.segments.remove(slot);
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        self.segments.reweigh(change.slot, change.weight);
        self.make_room(0, victims);
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        for list in [SMALL, MAIN] {
            self.segments.lists().iter(list).for_each(|slot| each(slot, self.reads.get(slot).into()));
        }
    }

    /// The next victims fill the small queue, as far as it went or should go; the others the main one.
    fn adopt(&mut self, resident: &Arrival, uses: u32, victims: &mut Victims) {
        self.make_room(resident.weight, victims);
        let small = match &mut self.small_to_come {
            Some(to_come) => core::mem::replace(to_come, to_come.saturating_sub(1)) > 0,
            None => self.segments.load(SMALL) < self.small_share,
        };
        let list = if small { SMALL } else { MAIN };
        self.admit(list, resident);
        self.touch(resident.slot, uses);
    }

    fn learned(&self) -> Vec<u8> {
        let mut memo = Memo::new(VERSION);
        memo.word(self.segments.lists().len(SMALL));
        memo.word(self.full_once.into());
        self.ghosts.write(&mut memo);
        memo.into_bytes()
    }

    fn recall(&mut self, learned: &[u8]) -> bool {
        let read = || {
            let mut memo = Recollection::of(learned, VERSION)?;
            Some((memo.word()?, memo.word()?, Ghosts::read(self.ghosts.bound(), &mut memo)?))
        };
        let Some((small, full_once, ghosts)) = read() else { return false };
        self.small_to_come = Some(small);
        self.full_once = full_once != 0;
        self.ghosts = ghosts;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_guest::testkit::{self, Simulator};

    #[test]
    fn keeps_the_contract() {
        testkit::check::<S3Fifo>();
    }

    fn cache(entries: u32) -> Simulator<S3Fifo> {
        Simulator::new(&Limits::entries(entries)).unwrap()
    }

    #[test]
    fn a_scan_passes_through_the_small_queue() {
        let mut cache = cache(20);
        for _ in 0..3 {
            (0..20).for_each(|key| {
                cache.request(key, 1);
            });
        }
        (100..1000).for_each(|key| {
            cache.request(key, 1);
        });
        let kept = (0..20).filter(|&key| cache.contains(key)).count();
        assert!(kept >= 17, "of 20 that were read, {kept} are left");
    }

    #[test]
    fn who_comes_back_as_a_ghost_goes_to_the_main_queue() {
        let mut cache = cache(10);
        (0..20).for_each(|key| {
            cache.request(key, 1);
        });
        let ghost = (0..20).rev().find(|&key| !cache.contains(key)).unwrap();
        cache.request(ghost, 1);
        (100..104).for_each(|key| {
            cache.request(key, 1);
        });
        assert!(cache.contains(ghost));
        assert!(!cache.contains(100) && cache.contains(103), "on probation there is room for one");
    }

    #[test]
    fn a_cache_of_one_entry_works() {
        let mut cache = cache(1);
        let hits = [1, 1, 2, 2, 2, 1, 1].map(|key| cache.request(key, 1));
        assert_eq!(hits, [false, true, false, true, true, false, true]);
    }
}
