//! TTL: evicts what expires soonest; what never expires goes last, in order of arrival.
//!
//! The residents are in a radix tree over their expiries, 6 bits a level, which is only as deep as it must be: an
//! entry waits in a bucket near the root until its bucket is the first one and too full to search, and then the bucket
//! becomes a node. An entry sinks at most 11 levels in its life, so every operation takes amortised constant time, however
//! many residents there are, and the order is exact to the millisecond.
//!
//! A read costs nothing. 16 bytes a resident, and the nodes: few, and never more than 35 bytes a resident.
//!
//! Roads not taken: a heap, whose cost grows with the number of residents; a timing wheel, which asks for a resolution and
//! answers with it; a radix heap, in which nothing may expire before the last victim would have.

use alloc::vec::Vec;

use larder_guest::kit::{BySlot, Weights};
use larder_guest::{About, Arrival, Eviction, Limits, NEVER, Parameters, Refusal, Slot, Victims};

const NONE: u32 = u32::MAX;
const BITS: u32 = 6;
/// The shift of the root's digit: 4 bits there, and 6 on each of the ten levels below.
const TOP: u32 = 60;
/// A bucket of up to so many is searched and not split.
const SEARCHED: usize = 16;
const ROOT: u32 = 0;

/// One digit of the expiry: by its value, a bucket (its first slot) or a node.
#[derive(Clone, Debug)]
struct Node {
    occupied: u64,
    /// Which of those are nodes.
    nodes: u64,
    children: [u32; 1 << BITS],
}

const EMPTY: Node = Node { occupied: 0, nodes: 0, children: [NONE; 1 << BITS] };

/// Evicts what expires soonest.
#[derive(Debug)]
pub struct Ttl {
    weights: Weights,
    expiries: BySlot<u64>,
    /// Previous and next in the circle that is a bucket.
    links: BySlot<[u32; 2]>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// The bucket of those that never expire.
    never: u32,
}

fn digit(expiry: u64, shift: u32) -> usize {
    (expiry >> shift) as usize & ((1 << BITS) - 1)
}

impl Ttl {
    /// Puts a slot at the end of the circle that begins with `first`, and answers with what it begins with now.
    fn join(&mut self, first: u32, slot: Slot) -> u32 {
        if first == NONE {
            self.links.set(slot, [slot, slot]);
            return slot;
        }
        let last = self.links.get(first)[0];
        self.links.set(slot, [last, first]);
        // One alone is its own neighbour on both sides: write one side after the other.
        self.links.set(last, [self.links.get(last)[0], slot]);
        self.links.set(first, [slot, self.links.get(first)[1]]);
        first
    }

    /// Takes a slot out of the circle that begins with `first`, and answers with what it begins with now.
    fn leave(&mut self, first: u32, slot: Slot) -> u32 {
        let [previous, next] = self.links.get(slot);
        if next == slot {
            return NONE;
        }
        self.links.set(previous, [self.links.get(previous)[0], next]);
        self.links.set(next, [previous, self.links.get(next)[1]]);
        if first == slot { next } else { first }
    }

    fn insert(&mut self, slot: Slot, expiry: u64) {
        let (mut node, mut shift) = (ROOT, TOP);
        loop {
            let at = digit(expiry, shift);
            let child = self.nodes[node as usize].children[at];
            if self.nodes[node as usize].nodes >> at & 1 == 0 {
                let first = self.join(child, slot);
                let node = &mut self.nodes[node as usize];
                node.children[at] = first;
                node.occupied |= 1 << at;
                return;
            }
            (node, shift) = (child, shift - BITS);
        }
    }

    fn remove(&mut self, slot: Slot, expiry: u64) {
        let mut path = [ROOT; (TOP / BITS) as usize + 1];
        let mut depth = 0;
        loop {
            let at = digit(expiry, TOP - BITS * depth as u32);
            let node = &self.nodes[path[depth] as usize];
            let child = node.children[at];
            if node.nodes >> at & 1 == 0 {
                self.nodes[path[depth] as usize].children[at] = self.leave(child, slot);
                break;
            }
            depth += 1;
            path[depth] = child;
        }
        // What is empty now goes, up to the root, which stays.
        loop {
            let at = digit(expiry, TOP - BITS * depth as u32);
            let node = &mut self.nodes[path[depth] as usize];
            if node.children[at] != NONE {
                return;
            }
            node.occupied &= !(1 << at);
            node.nodes &= !(1 << at);
            if node.occupied != 0 || depth == 0 {
                return;
            }
            self.free.push(path[depth]);
            depth -= 1;
            self.nodes[path[depth] as usize].children[digit(expiry, TOP - BITS * depth as u32)] = NONE;
        }
    }

    /// Makes a node of a bucket.
    fn split(&mut self, parent: u32, at: usize, shift: u32) -> u32 {
        let node = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(EMPTY);
            self.nodes.len() as u32 - 1
        });
        self.nodes[node as usize] = EMPTY;
        let first = self.nodes[parent as usize].children[at];
        let mut slot = first;
        loop {
            let next = self.links.get(slot)[1];
            let place = digit(self.expiries.get(slot), shift);
            let begins = self.join(self.nodes[node as usize].children[place], slot);
            self.nodes[node as usize].children[place] = begins;
            self.nodes[node as usize].occupied |= 1 << place;
            if next == first {
                break;
            }
            slot = next;
        }
        self.nodes[parent as usize].children[at] = node;
        self.nodes[parent as usize].nodes |= 1 << at;
        node
    }

    /// The slots of a bucket, in order of arrival.
    fn bucket(&self, first: u32) -> impl Iterator<Item = Slot> + '_ {
        core::iter::successors((first != NONE).then_some(first), move |&slot| {
            let next = self.links.get(slot)[1];
            (next != first).then_some(next)
        })
    }

    /// Who expires soonest, and among those came first.
    fn soonest(&mut self) -> Option<Slot> {
        let (mut node, mut shift) = (ROOT, TOP);
        loop {
            let here = &self.nodes[node as usize];
            if here.occupied == 0 {
                return (self.never != NONE).then_some(self.never);
            }
            let at = here.occupied.trailing_zeros() as usize;
            let child = here.children[at];
            if here.nodes >> at & 1 == 1 {
                node = child;
            } else if shift == 0 {
                return Some(child);
            } else if self.bucket(child).nth(SEARCHED).is_none() {
                return self.bucket(child).min_by_key(|&slot| self.expiries.get(slot));
            } else {
                node = self.split(node, at, shift - BITS);
            }
            shift -= BITS;
        }
    }

    fn collect(&self, node: u32, into: &mut Vec<Slot>) {
        let here = &self.nodes[node as usize];
        for at in (0..1 << BITS).filter(|at| here.occupied >> at & 1 == 1) {
            if here.nodes >> at & 1 == 1 {
                self.collect(here.children[at], into);
            } else {
                into.extend(self.bucket(here.children[at]));
            }
        }
    }
}

impl Eviction for Ttl {
    const ABOUT: About = About::new(
        "ttl",
        env!("CARGO_PKG_VERSION"),
        "Evicts what expires soonest; what never expires goes last, in order of arrival",
    );

    fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
        Ok(Ttl {
            weights: Weights::new(limits),
            expiries: BySlot::new(limits),
            links: BySlot::new(limits),
            nodes: alloc::vec![EMPTY],
            free: Vec::new(),
            never: NONE,
        })
    }

    #[inline]
    fn touch(&mut self, _: Slot, _: u32) {}

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        while !self.weights.fits(arrival.weight) {
            let Some(victim) = self.soonest() else { break };
            self.depart(victim);
            victims.push(victim);
        }
        self.weights.add(arrival.slot, arrival.weight);
        self.expiries.set(arrival.slot, arrival.expires_at);
        match arrival.expires_at {
            NEVER => self.never = self.join(self.never, arrival.slot),
            expiry => self.insert(arrival.slot, expiry),
        }
    }

    fn depart(&mut self, slot: Slot) {
        self.weights.remove(slot);
        match self.expiries.get(slot) {
            NEVER => self.never = self.leave(self.never, slot),
            expiry => self.remove(slot, expiry),
        }
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        let mut slots = Vec::new();
        self.collect(ROOT, &mut slots);
        slots.sort_by_key(|&slot| self.expiries.get(slot));
        slots.extend(self.bucket(self.never));
        slots.into_iter().for_each(|slot| each(slot, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_guest::testkit::{self, Simulator, fingerprint};

    #[test]
    fn keeps_the_contract() {
        testkit::check::<Ttl>();
    }

    fn left(cache: &Simulator<Ttl>, keys: u64) -> Vec<u64> {
        (0..keys).filter(|&key| cache.contains(key)).collect()
    }

    #[test]
    fn the_soonest_goes_first_and_the_eternal_last() {
        let mut cache = Simulator::<Ttl>::new(&Limits::entries(3)).unwrap();
        let expiries = [1000, NEVER, 1001, 999, 2000, NEVER, 5];
        let after: Vec<_> = (0..7)
            .map(|key| {
                cache.request_expiring(key, 1, expiries[key as usize]);
                left(&cache, 7)
            })
            .collect();
        // 999 comes too late to stand against 1000, and goes next; 5 pushes out 2000 and not itself.
        assert_eq!(after[3..], [[1, 2, 3], [1, 2, 4], [1, 4, 5], [1, 5, 6]]);
        cache.request_expiring(7, 1, NEVER);
        cache.request_expiring(8, 1, NEVER);
        assert_eq!(left(&cache, 9), [5, 7, 8], "the eternal go in order of arrival");
    }

    /// Against a sorted list, over spans from milliseconds to centuries, with departures from the middle.
    #[test]
    fn equals_a_sorted_list() {
        for span in [1, 20, 1000, 1 << 20, 1 << 40, u64::MAX - 1] {
            let mut ttl = Ttl::open(&Limits::entries(300), &Parameters::defaults(&Ttl::ABOUT)).unwrap();
            let mut model: Vec<(u64, u32)> = Vec::new();
            for slot in 0..6000u32 {
                let random = fingerprint(slot.into());
                let expires_at = if random & 15 == 0 { NEVER } else { fingerprint(random) % span };
                let arrival = Arrival { slot, fingerprint: 0, weight: 1, cost: 0, expires_at };
                let mut victims = Victims::default();
                ttl.arrive(&arrival, &mut victims);
                let expected: Vec<_> = if model.len() == 300 { Vec::from([model.remove(0).1]) } else { Vec::new() };
                assert_eq!(victims.as_slice(), expected);
                let at = model.partition_point(|&(other, _)| other <= expires_at);
                model.insert(at, (expires_at, slot));
                if random >> 62 == 0 {
                    ttl.depart(model.remove((random >> 8) as usize % model.len()).1);
                }
                if slot % 1000 == 0 {
                    let mut order = Vec::new();
                    ttl.residents(&mut |slot, _| order.push(slot));
                    assert!(order.iter().eq(model.iter().map(|(_, slot)| slot)));
                }
            }
            model.iter().for_each(|&(_, slot)| ttl.depart(slot));
            assert_eq!(ttl.nodes.len() - 1, ttl.free.len(), "all nodes but the root are free again");
            assert!(ttl.nodes.len() * SEARCHED < 6000, "{} nodes", ttl.nodes.len());
        }
    }
}
