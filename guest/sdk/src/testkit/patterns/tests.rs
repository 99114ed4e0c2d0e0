//! The kit must catch a module that breaks the contract: one broken module a clause, and a plain operation for each.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::patterns::{
    Abilities, Action, Dropping, Event, Failure, Joining, Keeping, Kind, Loading, Looking, Mark, Promotion, Saving,
    Scope, Serving, Terms, Then, Traits, What,
};
use crate::{About, Refusal};

/// Read-through, and write, then invalidate, with one thing wrong.
struct Faulty<const FAULT: u32>;

const NONE: u32 = 0;
const PANICS: u32 = 1;
const REMEMBERS: u32 = 2;
const NEVER_ENDS: u32 = 3;
const LOOKS_BEYOND: u32 = 4;
const LOADS_UNASKED: u32 = 5;
const SERVES_NOTHING: u32 = 6;
const SERVES_TOO_OLD: u32 = 7;
const CALLS_STALE_FRESH: u32 = 8;
const RESCUES_WITHOUT_NEED: u32 = 9;
const QUIET_TOO_LONG: u32 = 10;
const FORGETS_TO_SAVE: u32 = 11;
const FORGETS_A_TIER: u32 = 12;
const FORGETS_TO_ANNOUNCE: u32 = 13;
const KEEPS_AFTER_ALL: u32 = 14;
const LEAVES_THE_FENCED: u32 = 15;
const FAILS_A_REFRESH: u32 = 16;
const ANSWERS_TWICE: u32 = 17;
const LOSES_A_FLUSH: u32 = 18;
const FORGETS_ITS_RULES: u32 = 19;
const STARTS_BY_THE_CLOCK: u32 = 20;
const TELLS_OTHERWISE: u32 = 21;

static CALLS: AtomicU64 = AtomicU64::new(0);

struct Known {
    tiers: u8,
    shared: u8,
    abilities: Abilities,
}

fn serve(what: What, mark: Mark) -> Serving {
    Serving { what, mark, quiet_ms: 0, keep: None, then: Then::End }
}

impl<const FAULT: u32> Patterns for Faulty<FAULT> {
    const ABOUT: About = About::new("faulty", "0.1.0", "");
    type Rules = Known;

    fn rules(keyspace: &Keyspace) -> Result<Known, Refusal> {
        if FAULT == FORGETS_ITS_RULES && CALLS.fetch_add(1, Ordering::Relaxed) % 50 == 49 {
            return Err(Refusal::of("", "not today"));
        }
        if !keyspace.abilities.contains(Abilities::LOADS | Abilities::SAVES) {
            return Err(Refusal::of("", "needs a source: give the keyspace one"));
        }
        Ok(Known { tiers: keyspace.tiers, shared: keyspace.shared, abilities: keyspace.abilities })
    }

    fn step(rules: &Known, turn: &Turn) -> Answer {
        use Kind::{Fill, Flush, Invalidate, Read, Refresh, Remove, Write};
        let operation = &turn.operation;
        let (held, traits) = (operation.held, operation.traits);
        let announce = rules.abilities.contains(Abilities::ANNOUNCES) && FAULT != FORGETS_TO_ANNOUNCE;
        let terms = |fresh_ms| Terms {
            fresh_ms,
            near_ms: fresh_ms,
            quiet_ms: if FAULT == QUIET_TOO_LONG { fresh_ms + 1 } else { fresh_ms },
            ..Terms::NOTHING
        };
        let keeping = |what| Keeping { what, tiers: rules.tiers, terms: terms(1_000), announce: false };
        let drop = Action::Drop(Dropping { tiers: rules.tiers, announce });
        let load = || match traits.contains(Traits::CACHED_ONLY) && FAULT != LOADS_UNASKED {
            true => Action::Miss.end(),
            false => Action::Load(Loading { soft_ms: 0, hard_ms: 100, conditional: false }).with(3),
        };
        if FAULT == PANICS {
            assert!(operation.elapsed_ms < 100, "too slow for me");
        }
        if FAULT == REMEMBERS && CALLS.fetch_add(1, Ordering::Relaxed) % 2 == 1 && operation.kind == Write {
            return Action::Fail(Failure::Unsupported).end();
        }
        match (operation.kind, operation.cookie, turn.event) {
            (Read, 0, Event::Start) => match held {
                Some(held) if held.is_fresh() => Action::Serve(serve(What::Held, Mark::Fresh)).end(),
                Some(held) if held.may_be_stale() && FAULT == CALLS_STALE_FRESH => {
                    Action::Serve(serve(What::Held, Mark::Fresh)).end()
                }
                Some(held) if held.may_be_stale() => Action::Serve(serve(What::Held, Mark::Stale)).end(),
                Some(_) if FAULT == SERVES_TOO_OLD => Action::Serve(serve(What::Held, Mark::Stale)).end(),
                Some(_) if FAULT == RESCUES_WITHOUT_NEED => Action::Serve(serve(What::Held, Mark::Rescued)).end(),
                _ if FAULT == LOOKS_BEYOND => Action::Look(Looking { tier: 7, promote: None }).with(1),
                _ if traits.contains(Traits::CACHED_ONLY) => load(),
                _ if FAULT == STARTS_BY_THE_CLOCK && turn.moment.now > 1_000_000 => load(),
                // That a copy is kept which is found there, and then it is not.
                _ if FAULT == TELLS_OTHERWISE => {
                    let promote = Some(Promotion { tiers: 1, near_ms: 1_000 });
                    Action::Look(Looking { tier: rules.tiers.trailing_zeros() as u8, promote }).with(1)
                }
                _ => Action::Join(Joining { scope: Scope::Process, wait_ms: 100 }).with(2),
            },
            (Read, 1, _) if held.is_some_and(|held| held.is_fresh()) => {
                Action::Serve(serve(What::Held, Mark::Fresh)).end()
            }
            (Read, 2, Event::Landed) => Action::Serve(serve(What::Loaded, Mark::Fresh)).end(),
            (Read, 2, Event::Waited) if FAULT == SERVES_NOTHING => {
                Action::Serve(serve(What::Loaded, Mark::Fresh)).end()
            }
            (Read, 3, Event::LoadFailed(_)) if FAULT == NEVER_ENDS => Action::Pause(10).with(2),
            (Read, 2, _) => load(),
            (Read, 3, Event::Loaded(_)) => {
                let keep = Some(keeping(What::Loaded));
                Action::Serve(Serving { keep, ..serve(What::Loaded, Mark::Fresh) }).end()
            }
            (Read, 3, Event::LoadFailed(_)) if held.is_some() => Action::Serve(serve(What::Held, Mark::Rescued)).end(),
            (Read, _, Event::LoadFailed(failure)) => Action::Fail(failure).end(),
            (Read, ..) => load(),

            (Refresh, 0, _) => Action::Load(Loading { soft_ms: 0, hard_ms: 100, conditional: false }).with(3),
            (Refresh, 3, Event::Loaded(_)) => Action::Keep(keeping(What::Loaded)).with(4),
            (Refresh, 4, Event::Kept(outcome)) if outcome.fenced != 0 && FAULT == KEEPS_AFTER_ALL => {
                Action::Keep(keeping(What::Loaded)).with(5)
            }
            (Refresh, _, Event::LoadFailed(failure)) if FAULT == FAILS_A_REFRESH => Action::Fail(failure).end(),
            (Refresh, ..) => Action::Finish(None).end(),

            (Write, 0, _) if FAULT == LEAVES_THE_FENCED => Action::Keep(keeping(What::Brought)).with(9),
            (Write, 0, _) if FAULT == FORGETS_TO_SAVE => Action::Finish(None).end(),
            (Write | Remove | Flush, 0, _) => Action::Save(Saving { fence: 0, hard_ms: 0 }).with(1),
            (Flush, 1, Event::SaveFailed(_)) if FAULT == LOSES_A_FLUSH => Action::Finish(None).end(),
            (Write | Remove | Flush, 1, Event::SaveFailed(failure)) => Action::Fail(failure).end(),
            (Remove, 1, _) if FAULT == ANSWERS_TWICE => Action::Serve(serve(What::Held, Mark::Fresh)).with(1),
            (Write | Remove | Flush, 1, _) => drop.with(2),
            (Invalidate, 0, _) => {
                let heard = traits.contains(Traits::HEARD);
                let mut tiers = if heard { rules.tiers & !rules.shared } else { rules.tiers };
                if FAULT == FORGETS_A_TIER {
                    tiers &= 1;
                }
                if tiers == 0 {
                    return Action::Finish(None).end();
                }
                Action::Drop(Dropping { tiers, announce: announce && !heard }).with(2)
            }
            (Fill | Write | Remove | Flush | Invalidate, ..) => Action::Finish(None).end(),
        }
    }
}

fn violation<const FAULT: u32>() -> Violation {
    let found = Suite::default().run(&Faulty::<FAULT>::ABOUT, open::<Faulty<FAULT>>);
    *found.expect_err(&format!("fault {FAULT} shows"))
}

#[track_caller]
fn shows<const FAULT: u32>(clause: Clause, steps: usize) {
    let found = violation::<FAULT>();
    assert_eq!(found.clause, clause, "{found}");
    assert!(found.transcript.len() <= steps, "{} steps:\n{found}", found.transcript.len());
}

#[test]
fn a_module_that_keeps_the_contract_passes() {
    let report = check::<Faulty<NONE>>(&[]);
    assert!(report.operations > 10_000 && report.steps > 20_000 && report.refused > 1_000, "{report:?}");
}

#[test]
fn every_fault_is_found_and_shrunk_to_a_few_steps() {
    shows::<PANICS>(Clause::Answers, 1);
    shows::<NEVER_ENDS>(Clause::Ends, crate::patterns::MOST_STEPS);
    shows::<LOOKS_BEYOND>(Clause::Suits, 1);
    shows::<LOADS_UNASKED>(Clause::Suits, 1);
    shows::<ANSWERS_TWICE>(Clause::Suits, 2);
    shows::<FAILS_A_REFRESH>(Clause::Suits, 2);
    shows::<SERVES_NOTHING>(Clause::ServesTruly, 2);
    shows::<SERVES_TOO_OLD>(Clause::ServesTruly, 1);
    shows::<CALLS_STALE_FRESH>(Clause::ServesTruly, 1);
    shows::<RESCUES_WITHOUT_NEED>(Clause::ServesTruly, 1);
    shows::<QUIET_TOO_LONG>(Clause::Terms, 3);
    shows::<FORGETS_TO_SAVE>(Clause::AcknowledgesTruly, 1);
    shows::<FORGETS_A_TIER>(Clause::AcknowledgesTruly, 2);
    shows::<FORGETS_TO_ANNOUNCE>(Clause::AcknowledgesTruly, 3);
    shows::<LEAVES_THE_FENCED>(Clause::AcknowledgesTruly, 2);
    shows::<LOSES_A_FLUSH>(Clause::AcknowledgesTruly, 2);
    shows::<KEEPS_AFTER_ALL>(Clause::RespectsFences, 3);
    shows::<STARTS_BY_THE_CLOCK>(Clause::Foretells, 1);
    shows::<TELLS_OTHERWISE>(Clause::Foretells, 2);
}

/// What depends on more than its arguments cannot be shrunk well; it is found.
#[test]
fn memory_is_found() {
    assert_eq!(violation::<REMEMBERS>().clause, Clause::Pure);
    assert_eq!(violation::<FORGETS_ITS_RULES>().clause, Clause::Pure);
}

#[test]
fn a_violation_reads_well() {
    let text = violation::<SERVES_NOTHING>().to_string();
    for part in [
        "broken: what is served is there, and is what its mark says\nnothing was loaded\n",
        "Kind::Read of Target::Key (tiers 0b1,",
        "Event::Start, held nothing -> Action::Join",
        "Event::Waited, held nothing -> Action::Serve",
    ] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}
