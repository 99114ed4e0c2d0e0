//! Invalidation: copies of a key, of many, of a prefix, of a tag or of all are out of date.
//!
//! ```text
//!  start --hard--> drop(all tiers, announce) ---+--dropped--> finish
//!    |                                          |
//!    +-----soft--> expire(all tiers, announce) -+--dropped, something is down--> fail(unreached), or finish
//!    |                                          |
//!    +----heard--> drop or expire what is not --+
//!                  shared, without announcing
//! ```
//!
//! An acknowledgement says that no old copy will be served any more. Where a tier or the bus is down that cannot be said
//! of other processes, so the operation fails, though it is done here and will be caught up on; unless the rule says
//! otherwise (`acknowledge-unreached`).
//!
//! The last rows are also the end of every write that leaves something to be dropped.

use larder_guest::patterns::{Action, Answer, Dropping, Event, Failure, Kind, Outcome, Traits};

use super::Step;
use super::cookie::{Memory, Stage};

/// The table.
pub fn step(step: &Step<'_>) -> Answer {
    match (step.memory.stage, step.turn.event) {
        (Stage::Start, Event::Start) if step.turn.operation.kind == Kind::Invalidate => {
            let traits = step.turn.operation.traits;
            let dropping = match traits.contains(Traits::HEARD) {
                true => Dropping { tiers: step.rules.tiers & !step.rules.shared, announce: false },
                false => Dropping { tiers: step.rules.tiers, announce: step.rules.announces },
            };
            if dropping.tiers == 0 {
                return Action::Finish(None).end();
            }
            let forget = if traits.contains(Traits::SOFT) { Action::Expire } else { Action::Drop };
            step.go(Stage::Forget, forget(dropping))
        }
        (Stage::Forget, Event::Dropped(outcome)) => conclude(step, &outcome),
        // Lost on the way, under other rules, say: what is dropped is never wrong.
        _ => forget(step, None),
    }
}

/// Drops the key everywhere, and then is at its end: well, or with a failure.
pub(super) fn forget(step: &Step<'_>, failure: Option<Failure>) -> Answer {
    let memory = Memory { failure: failure.or(step.memory.failure), ..step.memory };
    let dropping = Dropping { tiers: step.rules.tiers, announce: step.rules.announces };
    Step { memory, ..*step }.go(Stage::Forget, Action::Drop(dropping))
}

/// Acknowledges, if nothing is in the way.
pub(super) fn conclude(step: &Step<'_>, outcome: &Outcome) -> Answer {
    let unreached = outcome.is_owing() && !step.rules.acknowledge_unreached;
    match step.memory.failure.or(unreached.then_some(Failure::Unreached)) {
        // It is in the journal until it is done; to flush it again would not help those who were not reached.
        Some(Failure::Unreached) if step.turn.operation.kind == Kind::Flush => Action::Finish(None).end(),
        Some(failure) => Action::Fail(failure).end(),
        None => Action::Finish(None).end(),
    }
}
