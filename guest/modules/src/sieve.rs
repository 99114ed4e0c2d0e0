//! SIEVE: a queue that is never reordered, and a hand that looks for somebody unread.
//!
//! Zhang, Yang, Yue, Vigfusson and Rashmi, "SIEVE is Simpler than LRU", NSDI 2024. A read sets a mark. To evict, the
//! hand goes from old to new: it wipes marks as it passes, evicts the first entry without one, and stays where that
//! one was. Newcomers join at the new end, behind those that survived a pass, so they are sifted soon.
//!
//! A touch writes one byte. 9 bytes a resident.

use alloc::vec::Vec;

use larder_guest::kit::{BySlot, Lists, Memo, Recollection, Weights};
use larder_guest::{About, Arrival, Change, Eviction, Limits, Parameters, Refusal, Slot, Victims};

/// Of what is written for a successor.
const VERSION: u32 = 1;
/// A mark beside the other, while residents are adopted: this one was.
const ADOPTED: u8 = 2;

/// A queue in order of arrival with a mark for the read ones, and a hand.
#[derive(Debug)]
pub struct Sieve {
    weights: Weights,
    /// The oldest first.
    queue: Lists<1>,
    /// 1: read since the hand last came by.
    marks: BySlot<u8>,
    /// Who is looked at next; the oldest if `None`.
    hand: Option<Slot>,
    /// While residents are adopted: the predecessor's queue, the place of its hand there, and how many are still to come.
    recalled: Option<(Vec<Slot>, usize, usize)>,
}

impl Sieve {
    fn evict_one(&mut self, victims: &mut Victims) {
        while let Some(at) = self.hand.or(self.queue.front(0)) {
            if self.marks.get(at) == 0 {
                self.depart(at);
                victims.push(at);
                return;
            }
            self.marks.set(at, 0);
            self.hand = self.queue.next(at);
        }
    }

    /// Puts those that were adopted in the predecessor's order, and the hand where it was: the ranking has them in the order
    /// in which the hand would take them.
    fn restore(&mut self) {
        let Some((order, hand, _)) = self.recalled.take() else { return };
        for (place, slot) in order.into_iter().enumerate() {
            let mark = self.marks.values().get(slot as usize).copied().unwrap_or(0);
            if mark & ADOPTED != 0 {
                self.marks.set(slot, mark & !ADOPTED);
                self.queue.move_to_back(0, slot);
                if place >= hand && self.hand.is_none() {
                    self.hand = Some(slot);
                }
            }
        }
        self.marks.values_mut().iter_mut().for_each(|mark| *mark &= !ADOPTED);
    }
}

impl Eviction for Sieve {
    const ABOUT: About = About::new(
        "sieve",
        env!("CARGO_PKG_VERSION"),
        "A hand sifts out what was not read since it last came by: cheap, good on web traffic (NSDI 24)",
    );

    fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
        let (weights, queue) = (Weights::new(limits), Lists::new(limits));
        Ok(Sieve { weights, queue, marks: BySlot::new(limits), hand: None, recalled: None })
    }

    fn begin(&mut self, _: u64) {
        self.restore();
    }

    #[inline]
    fn touch(&mut self, slot: Slot, _: u32) {
        self.marks.set(slot, 1);
    }

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        while !self.weights.fits(arrival.weight) {
            self.evict_one(victims);
        }
        self.weights.add(arrival.slot, arrival.weight);
        self.queue.push_back(0, arrival.slot);
        self.marks.set(arrival.slot, 0);
    }

    fn depart(&mut self, slot: Slot) {
        if self.hand == Some(slot) {
            self.hand = self.queue.next(slot);
        }
        self.queue.remove(slot);
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
        // Once round without the marked ones, which the hand would spare; they follow in the order of the next round.
        let start = self.hand.or(self.queue.front(0));
        let ahead = || core::iter::successors(start, |&slot| self.queue.next(slot));
        let behind = || self.queue.iter(0).take_while(|&slot| Some(slot) != start);
        for mark in [0, 1] {
            let each_of_mark = |slot: Slot| (self.marks.get(slot) == mark).then_some(slot);
            ahead().chain(behind()).filter_map(each_of_mark).for_each(|slot| each(slot, mark.into()));
        }
    }

    fn adopt(&mut self, resident: &Arrival, uses: u32, victims: &mut Victims) {
        self.arrive(resident, victims);
        let mark = u8::from(uses > 0);
        let Some((_, _, to_come)) = &mut self.recalled else { return self.marks.set(resident.slot, mark) };
        *to_come = to_come.saturating_sub(1);
        let all_came = *to_come == 0;
        self.marks.set(resident.slot, mark | ADOPTED);
        // Now, and not with the first batch: operations would wait for that.
        if all_came {
            self.restore();
        }
    }

    fn learned(&self) -> Vec<u8> {
        let order: Vec<Slot> = self.queue.iter(0).collect();
        let mut memo = Memo::new(VERSION);
        memo.word(self.hand.unwrap_or(Slot::MAX));
        memo.words(&order);
        memo.into_bytes()
    }

    fn recall(&mut self, learned: &[u8]) -> bool {
        let read = || {
            let mut memo = Recollection::of(learned, VERSION)?;
            Some((memo.word()?, memo.words()?))
        };
        let Some((hand, order)) = read() else { return false };
        let hand = order.iter().position(|&slot| slot == hand).unwrap_or(order.len());
        let to_come = order.len();
        self.recalled = Some((order, hand, to_come));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use larder_guest::testkit::{self, Simulator};

    #[test]
    fn keeps_the_contract() {
        testkit::check::<Sieve>();
    }

    /// The figure of the paper: A to G, of which A, B and G are marked, then H, A, D, I, B, J arrive.
    #[test]
    fn the_figure_of_the_paper() {
        let mut cache = Simulator::<Sieve>::new(&Limits::entries(7)).unwrap();
        let mut ask = |keys: &str| {
            keys.bytes().for_each(|key| {
                cache.request(key.into(), 1);
            })
        };
        ask("GFEDCBA");
        ask("ABG");
        // The hand spares G, evicts F for H; A is a hit; D is one too and is marked; E goes for I; B is a hit; the hand
        // spares D and C goes for J.
        ask("HADIBJ");
        let here: Vec<char> = ('A'..='J').filter(|&c| cache.contains(c as u64)).collect();
        assert_eq!(here, ['A', 'B', 'D', 'G', 'H', 'I', 'J']);
    }

    #[test]
    fn when_all_are_marked_the_oldest_goes() {
        let mut cache = Simulator::<Sieve>::new(&Limits::entries(3)).unwrap();
        for key in [1, 2, 3, 3, 2, 1, 4] {
            cache.request(key, 1);
        }
        assert_eq!([1, 2, 3, 4].map(|key| cache.contains(key)), [false, true, true, true]);
    }
}
