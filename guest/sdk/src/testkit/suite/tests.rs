//! The kit must catch a policy that breaks the contract: one broken policy a clause, and a short history for each.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use super::*;
use crate::kit::{Lists, Weights};
use crate::{About, Arrival, Change, Refusal, Victims};

/// A FIFO that does one thing wrong.
struct Broken<const FAULT: u32> {
    queue: Lists<1>,
    weights: Weights,
    last: Option<Slot>,
    arrivals: u32,
}

const NONE: u32 = 0;
const OVERFLOWS: u32 = 1;
const NAMES_STRANGERS: u32 = 2;
const NAMES_TWICE: u32 = 3;
const KEEPS_THE_DEPARTED: u32 = 4;
const FORGETS_ONE: u32 = 5;
const REFUSES_TO_ADOPT: u32 = 6;
const TOSSES_A_COIN: u32 = 7;
const PANICS: u32 = 8;
const NEVER_OPENS: u32 = 9;
const IGNORES_A_CHANGE: u32 = 10;
const LISTS_TWICE: u32 = 11;
const MISTAKES_THE_ORDER: u32 = 12;
const FORGETS_WHAT_IT_LEARNED: u32 = 13;
const TRUSTS_WHAT_IT_RECALLS: u32 = 14;
const LEARNS_TOO_MUCH: u32 = 15;

impl<const FAULT: u32> Eviction for Broken<FAULT> {
    const ABOUT: About = About::new("broken", "0.1.0", "");

    fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
        if FAULT == NEVER_OPENS {
            return Err(Refusal::of("", "not today"));
        }
        Ok(Broken { queue: Lists::new(limits), weights: Weights::new(limits), last: None, arrivals: 0 })
    }

    fn touch(&mut self, _: Slot, times: u32) {
        assert!(FAULT != PANICS || times < 3, "three times");
    }

    fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
        self.arrivals += 1;
        while !self.weights.fits(arrival.weight) {
            let coin = FAULT == TOSSES_A_COIN && RandomState::new().build_hasher().finish() & 1 == 0;
            let next = if coin { self.queue.pop_back(0) } else { self.queue.pop_front(0) };
            let Some(victim) = next else { break };
            self.weights.remove(victim);
            match FAULT {
                OVERFLOWS if self.arrivals.is_multiple_of(5) => {}
                NAMES_STRANGERS if self.arrivals.is_multiple_of(5) => victims.push(1_000_000),
                NAMES_TWICE if self.arrivals.is_multiple_of(5) => {
                    victims.push(victim);
                    victims.push(victim);
                }
                _ => victims.push(victim),
            }
        }
        self.weights.add(arrival.slot, arrival.weight);
        self.queue.push_back(0, arrival.slot);
        self.last = Some(arrival.slot);
    }

    fn depart(&mut self, slot: Slot) {
        if FAULT == KEEPS_THE_DEPARTED && self.queue.len(0) > 1 && self.queue.back(0) == Some(slot) {
            return;
        }
        self.queue.remove(slot);
        self.weights.remove(slot);
    }

    fn change(&mut self, change: &Change, victims: &mut Victims) {
        if FAULT == IGNORES_A_CHANGE {
            return;
        }
        self.weights.remove(change.slot);
        self.weights.add(change.slot, change.weight);
        while self.weights.total() > self.weights.capacity() {
            let Some(victim) = self.queue.pop_front(0) else { break };
            self.weights.remove(victim);
            victims.push(victim);
        }
    }

    fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
        let skip = usize::from(FAULT == FORGETS_ONE && self.queue.len(0) > 3);
        self.queue.iter(0).skip(skip).for_each(|slot| each(slot, 0));
        if FAULT == LISTS_TWICE && self.queue.len(0) > 2 {
            self.last.into_iter().for_each(|slot| each(slot, 0));
        }
    }

    fn learned(&self) -> Vec<u8> {
        match FAULT {
            FORGETS_WHAT_IT_LEARNED | TRUSTS_WHAT_IT_RECALLS => vec![1; 40],
            LEARNS_TOO_MUCH => vec![1; 2 << 20],
            _ => Vec::new(),
        }
    }

    fn recall(&mut self, learned: &[u8]) -> bool {
        assert!(FAULT != TRUSTS_WHAT_IT_RECALLS || learned == [1; 40], "it relies on these bytes");
        FAULT != FORGETS_WHAT_IT_LEARNED
    }

    fn adopt(&mut self, resident: &Arrival, _: u32, victims: &mut Victims) {
        if FAULT == REFUSES_TO_ADOPT && self.queue.len(0) == 2 {
            return victims.push(resident.slot);
        }
        self.arrive(resident, victims);
    }
}

/// What breaks in a policy with this fault, and how many events it takes to show it.
fn violation<const FAULT: u32>() -> Violation {
    let open = |limits: &Limits| Native::<Broken<FAULT>>::open(limits, &Parameters::defaults(&Broken::<FAULT>::ABOUT));
    *Suite::default().run(open).expect_err("the fault shows")
}

#[track_caller]
fn shows<const FAULT: u32>(clause: Clause, events: usize) {
    let found = violation::<FAULT>();
    assert_eq!(found.clause, clause, "{found}");
    assert!(found.history.len() <= events, "{} events:\n{found}", found.history.len());
}

#[test]
fn a_policy_that_keeps_the_contract_passes() {
    let report = check::<Broken<NONE>>();
    assert!(report.histories == 200 && report.victims > 10_000, "{report:?}");
}

#[test]
fn every_fault_is_found_and_shrunk_to_a_handful_of_events() {
    shows::<OVERFLOWS>(Clause::WithinCapacity, 5);
    shows::<NAMES_STRANGERS>(Clause::VictimsAreResidents, 5);
    shows::<NAMES_TWICE>(Clause::VictimsOnce, 5);
    shows::<KEEPS_THE_DEPARTED>(Clause::ListsResidents, 3);
    shows::<FORGETS_ONE>(Clause::ListsResidents, 4);
    shows::<LISTS_TWICE>(Clause::ListsResidents, 3);
    shows::<REFUSES_TO_ADOPT>(Clause::Adopts, 3);
    shows::<FORGETS_WHAT_IT_LEARNED>(Clause::Recalls, 1);
    shows::<TRUSTS_WHAT_IT_RECALLS>(Clause::Recalls, 1);
    shows::<LEARNS_TOO_MUCH>(Clause::Recalls, 1);
    shows::<PANICS>(Clause::Answers, 4);
    shows::<NEVER_OPENS>(Clause::Answers, 0);
    shows::<IGNORES_A_CHANGE>(Clause::WithinCapacity, 3);
}

/// A coin needs a history long enough that it falls differently twice: shrinking cannot do much, and must end.
#[test]
fn chance_is_found() {
    assert_eq!(violation::<TOSSES_A_COIN>().clause, Clause::Deterministic);
}

/// A FIFO instead of a LIFO breaks nothing: the contract leaves the choice to the policy.
#[test]
fn the_choice_is_the_policys() {
    check::<Broken<MISTAKES_THE_ORDER>>();
}

#[test]
fn a_violation_reads_well() {
    let text = violation::<NAMES_TWICE>().to_string();
    for part in
        ["broken: a policy names each victim once\n", "it named slot ", "capacity 1,", "arrived slot 0", "-> victims"]
    {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[test]
fn the_seed_of_a_violation_shows_it_again() {
    let seed = violation::<PANICS>().seed;
    let open =
        |limits: &Limits| Native::<Broken<PANICS>>::open(limits, &Parameters::defaults(&Broken::<PANICS>::ABOUT));
    assert_eq!(Suite::only(seed).run(open).expect_err("the same").seed, seed);
}

#[test]
fn histories_cover_what_they_should() {
    use crate::testkit::{Event, Gap};
    let histories: Vec<_> = (0..200).map(|seed| History::random(seed, 300)).collect();
    let steps = || histories.iter().flat_map(|h| &h.steps);
    let events = || steps().flat_map(|s| &s.events);
    assert_eq!(histories[3], History::random(3, 300));
    assert!(histories.iter().any(|h| h.limits.capacity == 1) && histories.iter().any(|h| h.limits.capacity > 1000));
    assert!(steps().any(|s| s.events.len() == 1) && steps().any(|s| s.events.len() > 200));
    assert!(steps().any(|s| s.before != Gap::None));
    assert!(events().any(|e| matches!(e, Event::Remove(_))) && events().any(|e| matches!(e, Event::Replace(..))));
    assert!(events().any(|e| matches!(e, Event::Ask(_, 2.., t) if t.lives_ms.is_some() && t.cost > 0)));
    let heavy = histories.iter().filter(|h| h.limits.expected.is_none());
    assert!(
        heavy
            .flat_map(|h| h.steps.iter().flat_map(|s| &s.events).map(|e| (e, h.limits.capacity)))
            .any(|(e, capacity)| matches!(e, Event::Ask(_, _, t) if u64::from(t.weight) > capacity),)
    );
}
