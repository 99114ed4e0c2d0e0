//! Write-through: to the source, then to the tiers.
//!
//! ```text
//!  start --> save --saved--> keep in all tiers, announce --kept--> finish
//!             |                                     |
//!             |                                     +--fenced--> drop --> finish
//!             |
//!             +--save-failed, surely not done--> fail
//!             +--save-failed, who knows--> drop --> fail
//! ```
//!
//! Of two writers who overtake each other between the source and a tier, the one whose token is older is fenced. It
//! cannot know whose value the source has last, so it drops, and the next read finds out.
//!
//! A save that timed out may have been done: the old copy is not served on.

use larder_guest::patterns::{Action, Answer, Event, Keeping, Outcome, Saving, What};

use super::cookie::Stage;
use super::invalidation::{conclude, forget};
use super::{Step, freshness};

/// The table.
pub fn step(step: &Step<'_>) -> Answer {
    use Stage::*;
    match (step.memory.stage, step.turn.event) {
        (Start, Event::Start) => {
            let saving = Saving { fence: step.rules.tiers, hard_ms: step.rules.save_ms };
            step.go(ThroughSave, Action::Save(saving))
        }
        (ThroughSave, Event::Saved) => keep_brought(step, ThroughKeep, step.rules.tiers),
        (ThroughSave, Event::SaveFailed(failure)) if failure.is_certain() => Action::Fail(failure).end(),
        (ThroughSave, Event::SaveFailed(failure)) => forget(step, Some(failure)),
        (ThroughKeep, Event::Kept(outcome)) => after_keeping(step, &outcome),
        _ => forget(step, None),
    }
}

/// Keeps what the caller brought, and tells other processes to drop what they have.
pub(super) fn keep_brought(step: &Step<'_>, stage: Stage, tiers: u8) -> Answer {
    let operation = &step.turn.operation;
    let Some(mut incoming) = operation.brought else { return forget(step, None) };
    if incoming.cost_us == 0 {
        // What the next load will take, as far as anybody knows; for early refresh.
        incoming.cost_us = operation.held.map_or(0, |held| held.cost_us);
    }
    let terms = freshness::of_incoming(step.rules, &incoming, step.turn.moment.random);
    let keeping = Keeping { what: What::Brought, tiers, terms, announce: step.rules.announces };
    step.go(stage, Action::Keep(keeping))
}

/// A newer write or invalidation has come in between: nobody knows any more whose value is right.
pub(super) fn after_keeping(step: &Step<'_>, outcome: &Outcome) -> Answer {
    if outcome.fenced != 0 { forget(step, None) } else { conclude(step, outcome) }
}
